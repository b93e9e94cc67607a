"""How much attention the answer pays to each earlier token: the `importance` of the selection methods (method.md §6)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def answer_importance(
    queries: Float[Tensor, "batch heads time head_dim"],
    keys: Float[Tensor, "batch kv_heads time head_dim"],
    answer_mask: Bool[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    scaling: float | None = None,
) -> Float[Tensor, "batch kv_heads time"]:
    """Causal softmax attention from the answer's tokens: mean over them, then max over the query heads of a KV group (KaVa, section 3.2).

    `queries` and `keys` as the model attends with them (after RoPE where it has one); `mask`: tokens that are not padding;
    `scaling`: of the logits, 1/√head_dim unless given. Zeros for a row without answer tokens. Sliding windows and soft-capped logits
    are not modelled. Raises ValueError when the query heads cannot be divided among the KV heads.
    """
    heads, kv_heads = queries.shape[1], keys.shape[1]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot be grouped over {kv_heads} KV heads")
    position, is_answer = answer_positions(answer_mask & mask)
    asked = queries.gather(2, position[:, None, :, None].expand(-1, heads, -1, queries.shape[-1]))
    grouped = asked.float().unflatten(1, (kv_heads, heads // kv_heads))
    real = keys.float().masked_fill(~mask[:, None, :, None], 0)
    scale = queries.shape[-1] ** -0.5 if scaling is None else scaling
    logits = torch.einsum("bkgad,bktd->bkgat", grouped, real) * scale
    time = torch.arange(keys.shape[2], device=keys.device)
    visible = mask[:, None] & (time <= position[..., None])
    weights = logits.masked_fill(~visible[:, None, None], -torch.inf).softmax(-1)
    weights = torch.where(is_answer[:, None, None, :, None], weights, 0)
    mean = weights.sum(3) / is_answer.sum(1).clamp_min(1)[:, None, None, None]
    return mean.amax(2)


def answer_positions(
    answer_mask: Bool[Tensor, "batch time"],
) -> tuple[Int[Tensor, "batch answers"], Bool[Tensor, "batch answers"]]:
    """Positions of the marked tokens of each row, ascending and padded, and which of them are real."""
    longest = int(answer_mask.sum(1).max()) if answer_mask.numel() else 0
    position = (~answer_mask).long().argsort(dim=1, stable=True)[:, :longest]
    return position, answer_mask.gather(1, position)


def window_mask(mask: Bool[Tensor, "batch time"], window: int = 8) -> Bool[Tensor, "batch time"]:
    """The last `window` tokens of each row: as `answer_mask` they give the importance that R-KV observes while decoding."""
    return mask & (mask.cumsum(1) > mask.sum(1, keepdim=True) - window)
