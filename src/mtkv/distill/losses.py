"""The KV loss on matched tokens (method.md §8).

In: the student's and the fused teachers' KV at the tokens that are supervised, both centred and divided by the teacher's scale. Padding,
sinks and unmatched tokens are not in the input, so every mean is over supervised elements and weights keep their meaning
when time, layers or heads change. A row counts with its number of supervised tokens.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mtkv.distill.schedule import LayerWeight, layer_shares
from mtkv.kv.store import KEY, VALUE

KV = Float[Tensor, "tokens layers 2 width"]

# name → function (student, target, reduction="none") of the elements
DISTANCES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
}


def kv_terms(
    student: KV,
    target: KV,
    distance: str,
    kinds: Sequence[int] = (KEY, VALUE),
    layer_weight: LayerWeight | None = None,
    token_weight: Float[Tensor, "tokens ..."] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """d(K), d(V) and 1 − centred cosine, each a mean. The cosine is over `kinds`: those whose distance counts in the loss.

    `layer_weight` makes the mean over layers a weighted one; layers of weight 0 are not looked at. `token_weight [tokens]` or
    `[tokens, layers]` multiplies what a token adds, as the share of one of several teachers. Zeros that still carry a gradient
    path when there is nothing to compare.
    """
    nothing = student[:0].sum()
    kept, share = layer_shares(layer_weight, student.shape[1])
    if len(student) == 0:
        return {"key": nothing, "value": nothing, "cosine": nothing}
    if len(kept) < student.shape[1]:
        student, target = student[:, kept], target[:, kept]
        token_weight = token_weight[:, kept] if token_weight is not None and token_weight.ndim == 2 else token_weight
    share = share.to(student)
    compared = list(kinds)
    counts = 1.0 if token_weight is None else token_weight.reshape(len(student), -1)[..., None].to(student)
    elements = (DISTANCES[distance](student, target, reduction="none").mean(-1) * counts).mean(0)
    cosine = F.cosine_similarity(student[:, :, compared], target[:, :, compared], dim=-1) if compared else None
    return {
        "key": (share * elements[:, KEY]).sum(),
        "value": (share * elements[:, VALUE]).sum(),
        "cosine": nothing if cosine is None else (share * ((1 - cosine) * counts).mean((0, 2))).sum(),
    }
