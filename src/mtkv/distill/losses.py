"""The KV loss on matched tokens (method.md §8).

In: the student's and the fused teachers' KV at the tokens that are supervised, both centred and divided by the teacher's scale. Padding,
sinks and unmatched tokens are not in the input, so every mean is over supervised elements and weights keep their meaning
when time, layers or heads change.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mtkv.kv.store import KEY, VALUE

KV = Float[Tensor, "tokens layers 2 width"]

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
}


def kv_terms(
    student: KV, target: KV, distance: str, kinds: Sequence[int] = (KEY, VALUE)
) -> dict[str, Float[Tensor, ""]]:
    """d(K), d(V) and 1 − centred cosine, each a mean. The cosine is over `kinds`: those whose distance counts in the loss.

    Zeros that still carry a gradient path when there is nothing to compare.
    """
    nothing = 0.0 * student.sum()
    if len(student) == 0:
        return {"key": nothing, "value": nothing, "cosine": nothing}
    compared = list(kinds)
    return {
        "key": DISTANCES[distance](student[:, :, KEY], target[:, :, KEY]),
        "value": DISTANCES[distance](student[:, :, VALUE], target[:, :, VALUE]),
        "cosine": (1 - F.cosine_similarity(student[:, :, compared], target[:, :, compared], dim=-1)).mean()
        if compared
        else nothing,
    }
