"""The γ term of the loss (method.md §8): does the student attend to the teachers' keys as it attends to its own?

In: the student's queries and both sides' keys at the supervised tokens of a batch, packed. Out: one KL in nats.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mtkv.distill.layer_schedule import LayerWeight, layer_shares
from mtkv.distill.ragged import causal_log_softmax, causal_pairs, full_precision, mean_divergence, to_padded

Keys = Float[Tensor, "tokens layers kv_heads head_dim"]


def attention_kl(
    queries: Float[Tensor, "tokens layers heads head_dim"],
    student_keys: Keys,
    target_keys: Keys,
    sample: Int[Tensor, " tokens"],
    batch: int,
    layer_weight: LayerWeight | None = None,
    scaling: float | None = None,
) -> Float[Tensor, ""]:
    """KL(softmax(q·k_targetᵀ·scaling) ‖ softmax(q·k_studentᵀ·scaling)) in nats, mean over tokens, heads and layers.

    Queries (the student's, detached here) and keys are before RoPE, in the student's own space: neither centred nor scaled. `scaling` is
    the model's (1/√head_dim when None). Causal over the supervised tokens of the same row; query head h reads KV head
    h // (heads / kv_heads). Rows with one token give 0, no tokens give a zero with a gradient path. Raises ValueError when the
    number of query heads is not a multiple of that of KV heads.
    """
    heads, head_dim = queries.shape[2:]
    kv_heads = student_keys.shape[2]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} KV heads evenly")
    kept, share = layer_shares(layer_weight, queries.shape[1])
    if len(queries) == 0 or not kept:
        return student_keys[:0].sum()
    scaled = full_precision(queries.detach()) * (1 / math.sqrt(head_dim) if scaling is None else scaling)
    (query, mask), (own, _), (target, _) = (
        to_padded(full_precision(x), sample, batch) for x in (scaled, student_keys, target_keys)
    )
    values = [
        checkpoint(  # keeps [batch, heads, time, time] of one layer at a time
            _divergence,
            mask,
            query[:, :, layer].unflatten(2, (kv_heads, heads // kv_heads)),
            own[:, :, layer],
            target[:, :, layer],
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for layer in kept
    ]
    return (torch.stack(values) * share.to(values[0])).sum()


def _divergence(
    mask: Bool[Tensor, "batch time"],
    query: Float[Tensor, "batch time kv_heads group head_dim"],
    own: Float[Tensor, "batch time kv_heads head_dim"],
    target: Float[Tensor, "batch time kv_heads head_dim"],
) -> Float[Tensor, ""]:
    allowed = causal_pairs(mask)[:, None, None]
    log_own, log_target = (_log_attention(query, key, allowed) for key in (own, target))
    return mean_divergence(log_target.exp(), log_target, log_own, allowed, mask)


def _log_attention(query: Tensor, key: Tensor, allowed: Tensor) -> Float[Tensor, "batch kv_heads group query key"]:
    with torch.autocast(query.device.type, enabled=False):  # bfloat16 would round logits of 16 by 0.06
        return causal_log_softmax(torch.einsum("bikgd,bjkd->bkgij", query, key), allowed)
