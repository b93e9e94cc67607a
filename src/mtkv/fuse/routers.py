"""Weights over teachers for each row, the fused KV Σᵢ αᵢ·KVᵢ, and the entropy term on the weights (method.md §7).

A router is a module `(query, prototypes, **context) -> weights` whose weights sum to 1 over teachers.
`query [batch, features]` and `prototypes [batch, teachers, features]` come from `mtkv.fuse.prototypes`; weights are `[batch, teachers]`.
With `per_layer` all three have a layers axis: `[batch, layers, features]`, `[batch, teachers, layers, features]`, and the weights of
`learnable` and `similarity` are `[batch, teachers, layers]`. In the context: `likelihood` and `entropy [batch, teachers]`, each teacher's
mean log-likelihood of the row's gold answer and mean entropy of its next token there, in nats per token (`mtkv.kv.row_statistics`; only
what the router `@needs`). `row_seed [batch]`: a seed that belongs to the row, the same whenever the row is seen. `task [batch]`: the
`task_number` of the row's training source.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mtkv.fuse.prototypes import pool, prototypes_of, query_of, similarity_to_teachers
from mtkv.kv.row_rng import row_uniforms
from mtkv.registry import needs, registered

if TYPE_CHECKING:
    from mtkv.config.fusion import FusionConfig


@cache
def task_number(name: str) -> int:
    """A number of 56 bits that stands for a training source in a batch."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


def fuse(
    kvs: Float[Tensor, "tokens teachers ..."],
    weights: Float[Tensor, "batch teachers"] | Float[Tensor, "batch teachers layers"],
    sample: Int[Tensor, " tokens"],
) -> Float[Tensor, "tokens ..."]:
    """Σᵢ αᵢ·KVᵢ at every token, with the weights of its row: token n belongs to row `sample[n]`.

    Weights per layer need `kvs [tokens, teachers, layers, ...]`.
    """
    equation = "nt,nt...->n..." if weights.dim() == 2 else "ntl,ntl...->nl..."
    return torch.einsum(equation, weights[sample], kvs)


SIGN = {"specialized": 1.0, "diverse": -1.0}


def entropy(weights: Float[Tensor, "batch teachers *layers"]) -> Float[Tensor, ""]:
    """Mean Shannon entropy over teachers, in nats; 0·log 0 is 0."""
    return -(weights * weights.clamp_min(1e-12).log()).sum(1).mean()


def entropy_loss(weights: Float[Tensor, "batch teachers *layers"], target: str, strength: float) -> Float[Tensor, ""]:
    """To be added to the loss: γ·H for target `specialized` (pushes towards one teacher), −γ·H for `diverse` (towards all of them)."""
    return SIGN[target] * strength * entropy(weights)


@dataclass(frozen=True)
class EntropyRegularizer:
    """`entropy_loss` with its settings: `EntropyRegularizer("specialized", 0.01).compute_loss(weights)`.

    Raises ValueError for an unknown target or a negative strength (which would turn the target into its opposite).
    """

    target: str = "specialized"
    strength: float = 0.01

    def __post_init__(self) -> None:
        if self.target not in SIGN:
            raise ValueError(f"entropy target {self.target!r} is unknown; there are {', '.join(SIGN)}")
        if self.strength < 0:
            raise ValueError(f"entropy strength {self.strength} is negative; choose the other target instead")

    def compute_loss(self, weights: Float[Tensor, "batch teachers *layers"]) -> Float[Tensor, ""]:
        return entropy_loss(weights, self.target, self.strength)


class MLPScorer(nn.Module):
    """LayerNorm → Linear → SiLU → Linear, one output per teacher; with several layers the last Linear is each layer's own."""

    def __init__(self, features: int, teachers: int, width: int, layers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.hidden = nn.Linear(features, width)
        self.output = PerLayer(width, teachers, layers)

    def forward(self, query: Tensor, prototypes: Tensor | None) -> Tensor:
        return self.output(F.silu(self.hidden(self.norm(query))))


class GateScorer(nn.Module):
    """gᵢ = σ(wᵢ·LayerNorm(query)), one gate per teacher; returned as log gᵢ, so that at temperature 1 the weights are gᵢ / Σ g."""

    def __init__(self, features: int, teachers: int, width: int, layers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.gate = PerLayer(features, teachers, layers)

    def forward(self, query: Tensor, prototypes: Tensor | None) -> Tensor:
        return F.logsigmoid(self.gate(self.norm(query)))


class AttentionScorer(nn.Module):
    """q·kᵢ/√width with q from the query and kᵢ = an embedding of teacher i (+ a projection of its prototype, when there are any)."""

    def __init__(self, features: int, teachers: int, width: int, layers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.query = PerLayer(features, width, layers)
        self.key = nn.Linear(features, width, bias=False)
        self.teacher = nn.Parameter(torch.randn(teachers, width))

    def forward(self, query: Tensor, prototypes: Tensor | None) -> Tensor:
        asked = self.query(self.norm(query))[..., None, :]
        keys = self.teacher
        if prototypes is not None:
            if prototypes.dim() == query.dim() + 2:
                prototypes = prototypes.mean(-2)
            keys = keys + self.key(self.norm(prototypes.movedim(1, -2)))
        return (asked * keys).sum(-1) / keys.shape[-1] ** 0.5


class PerLayer(nn.Module):
    """A Linear that starts at zero, each layer with its own weights: `[batch, layers, inputs]`, or `[batch, inputs]` for one layer."""

    def __init__(self, inputs: int, outputs: int, layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(layers, outputs))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x @ self.weight[0] + self.bias[0]
        return torch.einsum("bli,lio->blo", x, self.weight) + self.bias


SCORERS: dict[str, type[nn.Module]] = {"mlp": MLPScorer, "gate": GateScorer, "attention": AttentionScorer}


class LearnableRouter(nn.Module):
    """The trained router: softmax(score / τ), where a scorer reads the query and, for `attention`, the prototypes too.

    Training starts from uniform weights, because each scorer's last layer starts at zero.

    `hidden_dim`: features of the query; `router_type`: mlp, gate or attention; `width`: of the router's own hidden layer; `layers`:
    None for one set of weights per row, else queries are `[batch, layers, hidden_dim]` and every layer gets its own weights.
    Raises ValueError for an unknown type or a query of another width.
    """

    def __init__(
        self,
        hidden_dim: int = 512,
        num_teachers: int = 3,
        router_type: str = "attention",
        *,
        width: int = 32,
        layers: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.hidden_dim, self.layers, self.temperature = hidden_dim, layers, temperature
        self.scorer = registered(SCORERS, router_type)(hidden_dim, num_teachers, width, layers or 1)

    def forward(
        self,
        query: Float[Tensor, "batch *layers features"],
        prototypes: Float[Tensor, "batch teachers *layers features"] | None = None,
        **context: Any,
    ) -> Float[Tensor, "batch teachers *layers"]:
        expected = (self.hidden_dim,) if self.layers is None else (self.layers, self.hidden_dim)
        if query.shape[1:] != expected:
            raise ValueError(
                f"the router reads queries [batch, {', '.join(map(str, expected))}], got {list(query.shape)}"
            )
        return (self.scorer(query, prototypes) / self.temperature).softmax(-1).movedim(-1, 1)


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


class ConfidenceRouter(nn.Module):
    """softmax(−entropyᵢ / τ): how sure each teacher is of its own next token, mean over the tokens of the row's answer, in nats.

    No label is read but the text that every row has: the entropy at a token is of what the teacher would say after the text before it, and
    does not depend on what stands there; the answer's last token plays no part at all. So it can be had of any text, one without a gold
    answer too. What it cannot see is whether a sure teacher is right: one that is sure and wrong, off its field say, gets the weight.
    `teacher_ce` sees that.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, query: Tensor, prototypes: Tensor, *, entropy: Tensor | None = None, **context: Any) -> Weights:
        return (_given(entropy, "confidence", "entropy").float() / -self.temperature).softmax(1)


class OracleRouter(nn.Module):
    """Control: all weight on the teacher with the highest gold likelihood, shared equally among ties."""

    def forward(
        self, query: Tensor, prototypes: Tensor, *, likelihood: Tensor | None = None, **context: Any
    ) -> Weights:
        found = _given(likelihood, "oracle", "likelihood")
        best = (found == found.amax(1, keepdim=True)).float()
        return best / best.sum(1, keepdim=True)


class TaskRouter(nn.Module):
    """The given weights of the row's training source. `by_task`: source → one weight per teacher."""

    tasks: Tensor
    weights: Tensor

    def __init__(self, by_task: dict[str, list[float]]) -> None:
        super().__init__()
        self.register_buffer("tasks", torch.tensor([task_number(task) for task in by_task]), persistent=False)
        self.register_buffer("weights", torch.tensor(list(by_task.values())), persistent=False)

    def forward(self, query: Tensor, prototypes: Tensor, *, task: Tensor | None = None, **context: Any) -> Weights:
        known = _given(task, "task", "task")[:, None] == self.tasks
        if not known.any(1).all():
            raise ValueError("fusion.by_task has no weights for the training source of some rows")
        return self.weights[known.float().argmax(1)]


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


@needs("likelihood")
def _teacher_ce(config: "FusionConfig", teachers: int, layers: int, features: int) -> nn.Module:
    return TeacherCERouter(config.temperature)


@needs("entropy")
def _confidence(config: "FusionConfig", teachers: int, layers: int, features: int) -> nn.Module:
    return ConfidenceRouter(config.temperature)


@needs("likelihood")
def _oracle(config: "FusionConfig", teachers: int, layers: int, features: int) -> nn.Module:
    return OracleRouter()


ROUTERS: dict[str, Callable[["FusionConfig", int, int, int], nn.Module]] = {
    "fixed": lambda config, teachers, layers, features: FixedRouter(config.weights, teachers),
    "similarity": lambda config, teachers, layers, features: SimilarityRouter(config.similarity, config.temperature),
    "learnable": _learnable,
    "teacher_ce": _teacher_ce,
    "confidence": _confidence,
    "task": lambda config, teachers, layers, features: TaskRouter(config.by_task or {}),
    "random": lambda config, teachers, layers, features: RandomRouter(teachers, config.temperature),
    "oracle": _oracle,
}


def build_router(config: "FusionConfig", teachers: int, layers: int, features_per_layer: int = 1) -> nn.Module:
    """The router of `config.strategy`. A query has layers·features_per_layer features, with `config.per_layer` features_per_layer."""
    return registered(ROUTERS, config.strategy)(config, teachers, layers, features_per_layer)
