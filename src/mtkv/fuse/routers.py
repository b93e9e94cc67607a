"""Weights over teachers for each sample (method.md §7): the strategies by name, and the module that computes them.

A router is a module `(query, prototypes, *, likelihood=None, row_seed=None) -> weights` whose weights sum to 1 over teachers.
`query [batch, features]` and `prototypes [batch, teachers, features]` come from `mtkv.fuse.prototypes`; weights are `[batch, teachers]`.
With `per_layer` all three have a layers axis: `[batch, layers, features]`, `[batch, teachers, layers, features]`, and the weights of
`learnable` and `similarity` are `[batch, teachers, layers]`. `likelihood [batch, teachers]`: each teacher's mean log-likelihood of the
row's gold answer, in nats per token. `row_seed [batch]`: a number of the row's own, the same whenever the row is seen.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtkv.fuse.combine import fuse
from mtkv.fuse.learnable import LearnableRouter
from mtkv.fuse.prototypes import pool, prototypes_of, query_of
from mtkv.fuse.similarity import similarity_to_teachers
from mtkv.kv.draws import row_uniforms

if TYPE_CHECKING:
    from mtkv.config.kv import FusionConfig

__all__ = ["ROUTERS", "LearnableRouter", "build_router", "fuse", "pool", "prototypes_of", "query_of"]

Weights = Float[Tensor, "batch teachers *layers"]


class FixedRouter(nn.Module):
    """The same given weights for every sample (uniform when none are given)."""

    weights: Tensor

    def __init__(self, given: list[float] | None, teachers: int) -> None:
        super().__init__()
        weights = torch.tensor(given or [1 / teachers] * teachers, dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, query: Tensor, prototypes: Tensor, **context: Any) -> Weights:
        return self.weights.expand(len(query), -1)


class SimilarityRouter(nn.Module):
    """softmax(sim(query, prototypeᵢ) / τ)."""

    def __init__(self, similarity: str, temperature: float) -> None:
        super().__init__()
        self.similarity, self.temperature = similarity, temperature

    def forward(self, query: Tensor, prototypes: Tensor, **context: Any) -> Weights:
        return (similarity_to_teachers(self.similarity, query, prototypes) / self.temperature).softmax(1)


class TeacherCERouter(nn.Module):
    """softmax(likelihoodᵢ / τ): the teachers' own mean log-likelihood of the gold answer."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(
        self, query: Tensor, prototypes: Tensor, *, likelihood: Tensor | None = None, **context: Any
    ) -> Weights:
        return (_given(likelihood, "teacher_ce", "likelihood").float() / self.temperature).softmax(1)


class OracleRouter(nn.Module):
    """Control: all weight on the teacher with the highest gold likelihood, shared equally among ties."""

    def forward(
        self, query: Tensor, prototypes: Tensor, *, likelihood: Tensor | None = None, **context: Any
    ) -> Weights:
        found = _given(likelihood, "oracle", "likelihood")
        best = (found == found.amax(1, keepdim=True)).float()
        return best / best.sum(1, keepdim=True)


class RandomRouter(nn.Module):
    """Control: softmax(log Eᵢ / τ) with Eᵢ ~ Exp(1), hashed from the row's seed.

    τ = 1 is a flat Dirichlet; τ → 0 puts all weight on one teacher, each with the same probability.
    """

    def __init__(self, teachers: int, temperature: float) -> None:
        super().__init__()
        self.teachers, self.temperature = teachers, temperature

    def forward(self, query: Tensor, prototypes: Tensor, *, row_seed: Tensor | None = None, **context: Any) -> Weights:
        seeds = _given(row_seed, "random", "row_seed").to(query.device)
        exponential = -row_uniforms(seeds, (self.teachers,)).log()
        return (exponential.log() / self.temperature).softmax(1).float()


def _given(value: Tensor | None, strategy: str, name: str) -> Tensor:
    if value is None:
        raise ValueError(f"the router {strategy!r} needs `{name}` for each row of the batch")
    return value


def _learnable(config: "FusionConfig", teachers: int, layers: int, features: int) -> nn.Module:
    features, own = (features, layers) if config.per_layer else (layers * features, None)
    return LearnableRouter(
        features, teachers, config.router, width=config.hidden, layers=own, temperature=config.temperature
    )


ROUTERS: dict[str, Callable[["FusionConfig", int, int, int], nn.Module]] = {
    "fixed": lambda config, teachers, layers, features: FixedRouter(config.weights, teachers),
    "similarity": lambda config, teachers, layers, features: SimilarityRouter(config.similarity, config.temperature),
    "learnable": _learnable,
    "teacher_ce": lambda config, teachers, layers, features: TeacherCERouter(config.temperature),
    "random": lambda config, teachers, layers, features: RandomRouter(teachers, config.temperature),
    "oracle": lambda config, teachers, layers, features: OracleRouter(),
}


def build_router(config: "FusionConfig", teachers: int, layers: int, features_per_layer: int = 1) -> nn.Module:
    """The router of `config.strategy`; a query has layers·features_per_layer features, or with `config.per_layer` those of one layer."""
    return ROUTERS[config.strategy](config, teachers, layers, features_per_layer)
