"""The trained router: weights over teachers from the query, and for `attention` from the teachers' prototypes too."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


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
    """softmax(score / τ) over teachers. Training starts from uniform weights, because each scorer's last layer starts at zero.

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
        if router_type not in SCORERS:
            raise ValueError(f"router type {router_type!r} is unknown; there are {', '.join(SCORERS)}")
        self.hidden_dim, self.layers, self.temperature = hidden_dim, layers, temperature
        self.scorer = SCORERS[router_type](hidden_dim, num_teachers, width, layers or 1)

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
