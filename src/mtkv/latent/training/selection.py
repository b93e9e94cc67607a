"""Which tokens of a chain supervise which latent: selection per layer and KV head, and the KV put together (KaVa, section 3.2).

Slot m of a row, layer and head is the m-th selected token there, in time order. A chain with fewer tokens than latents supervises the
first latents only.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtkv.kv.select import budget_counts, select
from mtkv.kv.shards import KEY

if TYPE_CHECKING:
    from mtkv.config.kv import SelectConfig

ChainKV = Float[Tensor, "batch chain layers 2 width"]
Index = Int[Tensor, "batch slots layers kv_heads"]


def slot_count(config: "SelectConfig", tokens: int, latents: int) -> int:
    """How many of a chain's `tokens` are selected: what the budget allows, at most one for each latent."""
    if tokens == 0:
        return 0
    return min(int(budget_counts(config.budget, torch.ones(1, tokens, dtype=torch.bool))), latents)


def select_slots(
    config: "SelectConfig",
    kv: ChainKV,
    kv_heads: int,
    mask: Bool[Tensor, "batch chain"],
    count: Int[Tensor, " batch"],
    importance: Float[Tensor, "batch layers kv_heads chain"] | None,
    seeds: Int[Tensor, " batch"],
) -> Index:
    """The `count` tokens of each row that each layer and head keeps, ascending; 0 behind them.

    `mask`: the chain's tokens, from which is selected. `seeds`: of the rows, for method random, which draws apart for every layer.
    """
    keys = kv[:, :, :, KEY].unflatten(-1, (kv_heads, -1))
    picked = [
        select(
            config.method,
            keys[:, :, layer].transpose(1, 2),
            count,
            mask,
            importance=None if importance is None else importance[:, layer],
            rate=config.rate,
            seeds=seeds + layer,
        ).index.transpose(1, 2)
        for layer in range(kv.shape[2])
    ]
    return torch.stack(picked, 2)


def gather_slots(
    kv: ChainKV,
    index: Index,
    sample: Int[Tensor, " tokens"],
    ordinal: Int[Tensor, " tokens"],
) -> Float[Tensor, "tokens layers 2 width"]:
    """KV at slot `ordinal` of row `sample`, each layer and head from the token it selected."""
    heads = index.shape[3]
    split = kv.unflatten(-1, (heads, -1))  # [batch, chain, layers, 2, heads, head_dim]
    chosen = index[sample, ordinal]  # [tokens, layers, heads]
    layer = torch.arange(kv.shape[2], device=kv.device)[:, None]
    head = torch.arange(heads, device=kv.device)
    picked = split[sample[:, None, None], chosen, layer, :, head]  # [tokens, layers, heads, 2, head_dim]
    return picked.transpose(2, 3).flatten(3)
