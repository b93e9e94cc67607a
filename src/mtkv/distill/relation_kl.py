"""Relations between the tokens of a row, instead of the KV themselves: a distance that needs no map.

MiniLMv2 (arXiv 2012.15828, §3.1): relation = softmax(x·xᵀ / √width), here causal, of keys and of values apart, with all heads of a layer
side by side. x·xᵀ is the same in every orthonormal basis, so permuting a teacher's heads or rotating its space changes
nothing, and its width is free.

`heads`: MiniLMv2's relation heads. The channels, all heads side by side, are cut into as many equal parts in student and teachers alike
(there 48 or 64, whatever the models' own heads), and each part has a relation of its own, compared with the same part of the other. The
finer, the more is said and the more it hangs on each model's order of channels.

With unit rms a token's logit to itself is √width, so wide spaces look at themselves only: mean self-probability 0.5 at width 32 and
0.75 at 144 (the embedded models), 1.00 at 256 (white noise), where the term teaches nothing. `sharpness` s replaces √width by s:
logits s·x·xᵀ/width, which mean the same at every width; 8 is what width 64 has.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mtkv.distill.layer_schedule import LayerWeight, layer_shares
from mtkv.distill.ragged import causal_log_softmax, causal_pairs, full_precision, mean_divergence, to_padded
from mtkv.kv.shards import KEY, VALUE


def check_heads(heads: int, widths: Mapping[str, int]) -> None:
    """Raises ValueError where the channels of a model (name → KV width) cannot be cut into that many relation heads."""
    common = math.gcd(*widths.values())
    if common % heads:
        allowed = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        found = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ValueError(
            f"kv.loss.relation_heads {heads}: must divide the KV width of every model ({found}); allowed: {allowed}"
        )


def unit_rms(x: Float[Tensor, "tokens layers 2 width"]) -> Float[Tensor, "tokens layers 2 width"]:
    """Divided by the detached root mean square over tokens and width, per layer and kind. Centre per channel first.

    The statistics are those of the tokens given; divide by calibration statistics where rows must not influence each other.
    """
    return x / x.detach().square().mean((0, 3), keepdim=True).sqrt().clamp_min(1e-8)


def relation_terms(
    student: Float[Tensor, "tokens layers 2 student_width"],
    teachers: Sequence[Float[Tensor, "tokens layers 2 _"]],
    weights: Float[Tensor, "batch teachers *layers"],
    sample: Int[Tensor, " tokens"],
    layer_weight: LayerWeight | None = None,
    sharpness: float | None = None,
    heads: int = 1,
) -> dict[str, Float[Tensor, ""]]:
    """KL(Σᵢ αᵢ·relation of teacher i ‖ relation of the student) as `key` and `value`, in nats, mean over tokens, heads and
    layers. `heads` must divide every width.

    Inputs are centred and of unit rms per layer and kind (see `unit_rms`); teachers hold the layers mapped to the student's.
    `weights [batch, teachers]` or `[batch, teachers, layers]` sum to 1 over the teachers and get a gradient. Rows with one token give 0,
    no tokens give zeros with a gradient path.
    """
    layers = student.shape[1]
    kept, share = layer_shares(layer_weight, layers)
    if len(student) == 0 or not kept:
        return {"key": student[:0].sum(), "value": student[:0].sum()}
    rows, mask = to_padded(full_precision(student), sample, len(weights))
    teacher_rows = [to_padded(full_precision(teacher), sample, len(weights))[0] for teacher in teachers]
    per_layer = weights if weights.ndim == 3 else weights[..., None].expand(-1, -1, layers)

    def term(kind: int) -> Tensor:
        values = [
            checkpoint(  # keeps [batch, time, time] of one layer at a time
                _divergence,
                sharpness,
                heads,
                mask,
                per_layer[..., layer],
                rows[:, :, layer, kind],
                *(teacher[:, :, layer, kind] for teacher in teacher_rows),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for layer in kept
        ]
        return (torch.stack(values) * share.to(rows)).sum()

    return {"key": term(KEY), "value": term(VALUE)}


def _divergence(
    sharpness: float | None,
    heads: int,
    mask: Bool[Tensor, "batch time"],
    weights: Float[Tensor, "batch teachers"],
    student: Float[Tensor, "batch time width"],
    *teachers: Float[Tensor, "batch time _"],
) -> Float[Tensor, ""]:
    own, *others = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (student, *teachers))
    allowed = causal_pairs(mask)[:, None]
    relations = torch.stack([_log_relation(teacher, allowed, sharpness).exp() for teacher in others])
    mixed = (weights.T[:, :, None, None, None].to(student.dtype) * relations).sum(0)
    log_mixed = mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()
    return mean_divergence(mixed, log_mixed, _log_relation(own, allowed, sharpness), allowed, mask)


def _log_relation(
    x: Float[Tensor, "batch heads time width"], allowed: Bool[Tensor, "batch 1 time time"], sharpness: float | None
) -> Float[Tensor, "batch heads time time"]:
    width = x.shape[-1]
    scale = (math.sqrt(width) if sharpness is None else sharpness) / width
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 would round logits of 16 by 0.06
        return causal_log_softmax(x @ x.mT * scale, allowed)
