"""Weights over teachers for each sample, and the fused KV (method.md §7).

A router is a module `(query [batch, features], prototypes [batch, teachers, features]) -> weights [batch, teachers]` whose rows
sum to 1. `query` is the student's own pooled KV, `prototypes` the teachers' KV of the same sample pooled over the same tokens in the
same space: prototypes over the whole data would be equal for all teachers, because closed-form maps share the student's mean.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from mtkv.config.kv import FusionConfig

Weights = Float[Tensor, "batch teachers"]


class FixedRouter(nn.Module):
    """The same given weights for every sample (uniform when none are given)."""

    weights: Tensor

    def __init__(self, config: "FusionConfig", teachers: int, features: int) -> None:
        super().__init__()
        given = config.weights or [1 / teachers] * teachers
        self.register_buffer("weights", torch.tensor(given, dtype=torch.float32), persistent=False)

    def forward(self, query: Tensor, prototypes: Tensor) -> Weights:
        return self.weights.expand(len(query), -1)


class SimilarityRouter(nn.Module):
    """softmax(cos(query, prototypeᵢ) / τ)."""

    def __init__(self, config: "FusionConfig", teachers: int, features: int) -> None:
        super().__init__()
        self.temperature = config.temperature

    def forward(self, query: Tensor, prototypes: Tensor) -> Weights:
        similarity = F.cosine_similarity(query[:, None], prototypes, dim=-1)
        return (similarity / self.temperature).softmax(-1)


class LearnableRouter(nn.Module):
    """An MLP on the query, softmax over teachers; its last layer starts at zero, so training starts from uniform weights."""

    def __init__(self, config: "FusionConfig", teachers: int, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.hidden = nn.Linear(features, config.hidden)
        self.output = nn.Linear(config.hidden, teachers)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, query: Tensor, prototypes: Tensor) -> Weights:
        return self.output(F.silu(self.hidden(self.norm(query)))).softmax(-1)


ROUTERS: dict[str, Callable[["FusionConfig", int, int], nn.Module]] = {
    "fixed": FixedRouter,
    "similarity": SimilarityRouter,
    "learnable": LearnableRouter,
}


def build_router(config: "FusionConfig", teachers: int, features: int) -> nn.Module:
    """The router of `config.strategy` for this many teachers and query features."""
    return ROUTERS[config.strategy](config, teachers, features)


def fuse(
    kvs: Float[Tensor, "tokens teachers ..."], weights: Weights, sample: Float[Tensor, " tokens"]
) -> Float[Tensor, "tokens ..."]:
    """Σᵢ αᵢ·KVᵢ, with the weights of the sample each token belongs to (`sample`, long)."""
    return torch.einsum("nt,nt...->n...", weights[sample], kvs)


def pool(x: Float[Tensor, "tokens ..."], sample: Float[Tensor, " tokens"], batch: int) -> Float[Tensor, "batch flat"]:
    """Mean over the tokens of each sample, features flattened; zeros for a sample without tokens."""
    flat = x.flatten(1)
    total = flat.new_zeros(batch, flat.shape[1]).index_add(0, sample, flat)
    count = flat.new_zeros(batch).index_add(0, sample, flat.new_ones(len(sample)))
    return total / count.clamp_min(1)[:, None]
