"""The KV loss on matched tokens (method.md §8).

In: the student's and the fused teachers' KV at the supervised tokens, centred, and the normalisation scale both are divided by. Padding,
sinks and unmatched tokens are not in the input, so every mean is over supervised elements and weights keep their meaning
when time, layers or heads change. A row counts with its number of supervised tokens.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mtkv.distill.layer_schedule import LayerWeight, layer_shares
from mtkv.kv.shards import KEY, VALUE
from mtkv.registry import registered

KV = Float[Tensor, "tokens layers 2 width"]

# name → function (student, target, reduction="none") of the elements; `relation` has other keys and values (`mtkv.distill.relation_kl`)
DISTANCES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "relation": F.mse_loss,
}


def kv_terms(
    student: KV,
    target: KV,
    distance: str,
    kinds: Sequence[int] = (KEY, VALUE),
    layer_weight: LayerWeight | None = None,
    token_weight: Float[Tensor, "tokens ..."] | None = None,
    scale: Float[Tensor, "*tokens layers 2 _"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """d(K), d(V) and 1 − centred cosine, each a mean. The cosine is over `kinds`: those whose distance counts in the loss.

    `layer_weight` makes the mean over layers a weighted one; layers of weight 0 are not looked at. `token_weight [tokens]` or
    `[tokens, layers]` multiplies what a token adds, as the share of one of several teachers. Both sides are divided by `scale`. Zeros
    that still carry a gradient path when there is nothing to compare. Layer by layer, so that no temporary has the size of all.
    """
    nothing = student[:0].sum()
    kept, share = layer_shares(layer_weight, student.shape[1])
    if len(student) == 0 or not kept:
        return {"key": nothing, "value": nothing, "cosine": nothing}
    scales = [None] * student.shape[1] if scale is None else scale.expand(len(student), *scale.shape[-3:]).unbind(1)
    counts = torch.ones_like(student[:, 0, 0, :1]) if token_weight is None else token_weight.reshape(len(student), -1)
    counts = counts.to(student).expand(-1, student.shape[1])
    pairs = list(zip(student.unbind(1), target.unbind(1), scales, counts.unbind(1), strict=True))
    found = [_layer_terms(*pairs[layer], registered(DISTANCES, distance), kinds) for layer in kept]
    elements, angles = (torch.stack(parts) for parts in zip(*found, strict=True))
    share = share.to(student)
    return {
        "key": (share * elements[:, KEY]).sum(),
        "value": (share * elements[:, VALUE]).sum(),
        "cosine": (share * angles).sum() if kinds else nothing,
    }


def _layer_terms(
    student: Float[Tensor, "tokens 2 width"],
    target: Float[Tensor, "tokens 2 width"],
    scale: Float[Tensor, "tokens 2 _"] | None,
    count: Float[Tensor, " tokens"],
    distance: Callable[..., Tensor],
    kinds: Sequence[int],
) -> tuple[Float[Tensor, "2"], Float[Tensor, ""]]:
    """Mean distance of K and of V, and mean 1 − cosine over `kinds`, of one layer."""
    if scale is not None:
        student, target = student / scale, target / scale
    elements = (distance(student, target, reduction="none").mean(-1) * count[:, None]).mean(0)
    if not kinds:
        return elements, elements.new_zeros(())
    compared = slice(min(kinds), max(kinds) + 1)
    angle = 1 - F.cosine_similarity(student[:, compared], target[:, compared], dim=-1)
    return elements, (angle * count[:, None]).mean()
