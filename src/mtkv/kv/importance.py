"""How much attention the answer pays to each earlier token: the `importance` of the selection methods (method.md §6)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtkv.kv.attention_hooks import Attended, AttentionInterception
from mtkv.models.device_placement import all_heads


def answer_importance(
    queries: Float[Tensor, "batch heads time head_dim"],
    keys: Float[Tensor, "batch kv_heads time head_dim"],
    answer_mask: Bool[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    scaling: float | None = None,
    visible: Bool[Tensor, "batch 1 time time"] | None = None,
    past: Bool[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch kv_heads time"]:
    """Softmax attention from the answer's tokens: max over the query heads of a KV group, then mean over the tokens (KaVa,
    arXiv 2510.02312, section 3.2).

    `queries` and `keys` as the model attends with them (after RoPE where it has one); `mask`: tokens that are not padding;
    `scaling`: factor of the logits, 1/√head_dim unless given; `visible`: which keys each token may see (a sliding window), causal unless
    given. `past`: compute in R-KV's order instead (its code, Zefan-Cai/R-KV): first the max of the group's logits, then a softmax over
    the tokens of `past` alone. Zeros for a row without answer tokens and where these see none. Soft-capped logits are not modelled.
    Raises ValueError when the query heads cannot be divided among the KV heads.

    Unlike KaVa's listing, which takes the softmax over the chain's tokens, this is the model's own softmax over all that the answer sees:
    so one store serves every choice of chain, and `mtkv.kv.scores` divides by the sum over the chain.
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
    seen = time <= position[..., None]
    if visible is not None:
        seen = visible[:, 0].to(time.device).gather(1, position[..., None].expand(-1, -1, len(time)))
    seen = seen & mask[:, None]
    if past is not None:
        logits, seen = logits.amax(2, keepdim=True), seen & past[:, None]
    weights = logits.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1).amax(2)
    weights = torch.where((is_answer & seen.any(-1))[:, None, :, None], weights, 0)
    return weights.sum(2) / is_answer.sum(1).clamp_min(1)[:, None, None]


class AskedAttention(AttentionInterception):
    """Context manager: computes `answer_importance` of each layer while a forward runs inside, so that no queries are kept.

    `asking`: the tokens whose attention counts (`answer_mask`). Rows must be padded on the right. `layers`: only those, in that order;
    None for all. `rows_at_once`: how many rows' attention is in memory at a time; None for all. `past`: as in `answer_importance`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        asking: Bool[Tensor, "batch time"],
        layers: Sequence[int] | None = None,
        rows_at_once: int | None = None,
        past: Bool[Tensor, "batch time"] | None = None,
    ) -> None:
        super().__init__(model)
        self.past = past
        self.asking, self.wanted, self.rows_at_once = asking, layers, rows_at_once or max(1, len(asking))
        self.found: dict[int, Float[Tensor, "batch kv_heads time"]] = {}
        self._visible: Tensor | None = None

    @torch.no_grad()
    def attend(self, layer: int, attended: Attended) -> tuple[Tensor, Tensor]:
        """Compute the layer's importance; K and V are returned unchanged."""
        if layer not in self.found and (self.wanted is None or layer in self.wanted):
            query, key, asking = attended.query, attended.key, self.asking.to(attended.query.device)
            found = []
            for start in range(0, len(asking), self.rows_at_once):
                rows = slice(start, start + self.rows_at_once)
                seen = None if self._visible is None else self._visible.expand(len(asking), -1, -1, -1)[rows]
                past = None if self.past is None else self.past[rows].to(query.device)
                real, scaling = torch.ones_like(asking[rows]), attended.scaling
                found.append(answer_importance(query[rows], key[rows], asking[rows], real, scaling, seen, past))
            self.found[layer] = all_heads(torch.cat(found), self.model)
        return attended.key, attended.value

    @property
    def importance(self) -> Float[Tensor, "batch layers kv_heads time"]:
        """The importance of the layers in `layers`, on the device of the first, after the forward."""
        found = [self.found[layer] for layer in self.wanted or sorted(self.found)]
        return torch.stack([scores.to(found[0].device) for scores in found], 1)

    def _before_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super()._before_layer(module, args, kwargs)
        mask = kwargs.get("attention_mask")
        self._visible = None if mask is None else mask if mask.dtype == torch.bool else mask == 0


def answer_positions(
    answer_mask: Bool[Tensor, "batch time"],
) -> tuple[Int[Tensor, "batch answers"], Bool[Tensor, "batch answers"]]:
    """Positions of the tokens of `answer_mask` in each row, ascending, and a mask that is False at the padding behind them."""
    longest = int(answer_mask.sum(1).max()) if answer_mask.numel() else 0
    position = (~answer_mask).long().argsort(dim=1, stable=True)[:, :longest]
    return position, answer_mask.gather(1, position)


def window_mask(mask: Bool[Tensor, "batch time"], window: int = 8) -> Bool[Tensor, "batch time"]:
    """True at the last `window` tokens of each row. As `answer_mask` of `answer_importance`, with the tokens before them as `past`, it
    gives the importance that R-KV observes while decoding."""
    return mask & (mask.cumsum(1) > mask.sum(1, keepdim=True) - window)
