"""Choose which time positions are supervised: KV compression in training (method.md §6).

In: keys of one layer, a mask of the tokens to choose from, a budget. Out: indices in time order and their mask, per row and KV
head. Ties (scores equal to 12 decimals) go to the earlier token. Keys may be taken before or after RoPE; KaVa and R-KV use the
cached, rotated ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtkv.kv.scores import SCORES, Tokens
from mtkv.registry import registered

METHODS = tuple(SCORES)
TIE_DECIMALS = 12
Mask = Bool[Tensor, "batch time"]
Budget = int | float | Int[Tensor, " batch"]


@dataclass(frozen=True)
class Selection:
    """Selected positions: `index [batch, (kv_heads,) most]` (int64, ascending) and `mask` of the same shape, True at the real ones.

    Rows with fewer than `most` tokens have index 0 and mask False at the end."""

    index: Tensor
    mask: Tensor


def select(
    method: str,
    keys: Float[Tensor, "batch kv_heads time head_dim"],
    budget: Budget,
    mask: Mask,
    *,
    importance: Float[Tensor, "batch kv_heads time"] | None = None,
    sinks: int = 0,
    **options: Any,
) -> Selection:
    """The tokens of one layer to keep, per row and KV head: `[batch, kv_heads, most]`.

    `budget`: a count (int ≥ 1), a share in (0, 1] (float) of each row's own selectable tokens, rounded up, or a count per row. `sinks`:
    so many first selectable tokens of a row are always kept, in addition to the budget and without scores. `importance`: for attention,
    rkv and rkv_decode (see `answer_importance`; for the last with `window_mask` and `past`). `options`: fields of `Tokens`, the `rate` λ
    of rkv, the `window` of rkv_decode, and for random `seeds` (one per row, independent of the batch) or a `generator`. Raises ValueError
    for an unknown method, budget or missing input.
    """
    candidates = mask & ~_sinks(mask, sinks)
    count = _count(method, budget, candidates)
    scores = registered(SCORES, method)(Tokens(keys, candidates, count, importance, **options))
    return _pick(scores, count, candidates, mask)


def token_scores(
    method: str,
    keys: Tensor | Sequence[Tensor],
    budget: Budget,
    mask: Mask,
    *,
    importance: Tensor | Sequence[Tensor] | None = None,
    sinks: int = 0,
    **options: Any,
) -> Float[Tensor, "batch time"]:
    """`select`'s scores averaged over the KV heads of a layer and then over layers (`keys`, `importance`: one tensor or one per layer)."""
    layers = [keys] if isinstance(keys, Tensor) else list(keys)
    given = [importance] * len(layers) if importance is None or isinstance(importance, Tensor) else list(importance)
    candidates = mask & ~_sinks(mask, sinks)
    count = _count(method, budget, candidates)
    found = [
        registered(SCORES, method)(Tokens(layer, candidates, count, part, **options)).mean(1)
        for layer, part in zip(layers, given, strict=True)
    ]
    return torch.stack(found).mean(0)


def select_tokens(
    method: str,
    keys: Tensor | Sequence[Tensor],
    budget: Budget,
    mask: Mask,
    *,
    importance: Tensor | Sequence[Tensor] | None = None,
    sinks: int = 0,
    **options: Any,
) -> Selection:
    """One set of tokens per row for all layers and heads, `[batch, most]`, by `token_scores`: what text arms supervise. See `select`."""
    scores = token_scores(method, keys, budget, mask, importance=importance, sinks=sinks, **options)
    candidates = mask & ~_sinks(mask, sinks)
    picked = _pick(scores[:, None], _count(method, budget, candidates), candidates, mask)
    return Selection(picked.index[:, 0], picked.mask[:, 0])


def budget_bites(mask: Mask, budget: Budget, sinks: int = 0) -> float:
    """Share of rows in which the budget binds: rows with more selectable tokens than it allows. 0 for no rows."""
    candidates = mask & ~_sinks(mask, sinks)
    bites = candidates.sum(1) > budget_counts(budget, candidates)
    return float(bites.double().mean()) if len(mask) else 0.0


def budget_counts(budget: Budget, mask: Mask) -> Int[Tensor, " batch"]:
    """Tokens to keep in each row: min(count, n) or ⌈share·n⌉. Raises ValueError for a budget that is neither."""
    available = mask.sum(1)
    if isinstance(budget, Tensor):
        return torch.minimum(available, budget)
    if isinstance(budget, int) and not isinstance(budget, bool) and budget >= 1:
        return available.clamp_max(budget)
    if isinstance(budget, float) and 0 < budget <= 1:
        # 0.07·100 is 7.000000000000001 in floating point
        return torch.tensor([math.ceil(budget * n - 1e-9) for n in available.tolist()], device=mask.device).long()
    raise ValueError(f"budget {budget!r}: give a count (int, at least 1) or a share (float, above 0 and at most 1)")


def _count(method: str, budget: Budget, mask: Mask) -> Int[Tensor, " batch"]:
    return mask.sum(1) if method == "full" else budget_counts(budget, mask)


def _sinks(mask: Mask, sinks: int) -> Mask:
    return mask & (mask.cumsum(1) <= sinks)


def _pick(scores: Tensor, count: Int[Tensor, " batch"], candidates: Mask, mask: Mask) -> Selection:
    ranked = scores.double().round(decimals=TIE_DECIMALS).masked_fill(~candidates[:, None], -torch.inf)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    kept = (place < count[:, None, None]) & candidates[:, None] | (mask & ~candidates)[:, None]
    most = int(kept.sum(-1).max()) if kept.numel() else 0
    index = (~kept).long().argsort(dim=-1, stable=True)[..., :most]
    real = kept.gather(-1, index)
    return Selection(index.masked_fill(~real, 0), real)
