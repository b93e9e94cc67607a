"""Trainable adapters between a teacher's KV width and the student's (method.md §4).

One contract: `adapter(x [tokens, layers, 2, width_in]) → [tokens, layers, 2, width_out]`, with K and V and every layer apart.
Inside the loss such a map is a moving target that can absorb the whole mismatch, or collapse; the frozen maps of
`mtkv.align.closed_form_maps` cannot.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from mtkv.align.closed_form_maps import KVMap
from mtkv.registry import needs, registered

INITIAL_STD = 0.02
KVIn = Float[Tensor, "tokens layers 2 width_in"]
KVOut = Float[Tensor, "tokens layers 2 width_out"]


class LinearAdapter(nn.Module):
    """x @ weight + bias per layer and kind; weights start at N(0, 0.02²), biases at 0."""

    def __init__(self, layers: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(layers, 2, width_in, width_out) * INITIAL_STD)
        self.bias = nn.Parameter(torch.zeros(layers, 2, width_out))

    @classmethod
    def from_map(cls, kv_map: KVMap) -> "LinearAdapter":
        """An adapter that starts as `kv_map.target`: the same output for the same teacher KV."""
        layers, _, width_in, width_out = kv_map.weight.shape
        adapter = cls(layers, width_in, width_out).to(kv_map.weight)
        scaled = kv_map.weight / kv_map.scale[..., None, None]
        with torch.no_grad():
            adapter.weight.copy_(scaled)
            adapter.bias.copy_(-torch.einsum("lki,lkio->lko", kv_map.x_mean, scaled))
        return adapter

    def forward(self, x: KVIn) -> KVOut:
        return torch.einsum("nlki,lkio->nlko", x, self.weight) + self.bias


class TwoStepAdapter(nn.Module):
    """Head width D_t → D_s with weights shared by the heads, then a mix of heads H_t → H_s that starts as the group average."""

    def __init__(self, layers: int, width_in: int, width_out: int, heads_in: int, heads_out: int) -> None:
        super().__init__()
        self.heads_in = heads_in
        dim_in, dim_out = head_dim(width_in, heads_in), head_dim(width_out, heads_out)
        self.width = nn.Parameter(torch.randn(layers, 2, dim_in, dim_out) * INITIAL_STD)
        self.mix = nn.Parameter(group_average(heads_in, heads_out).repeat(layers, 2, 1, 1))

    def forward(self, x: KVIn) -> KVOut:
        heads = x.unflatten(-1, (self.heads_in, -1))
        narrow = torch.einsum("nlkhi,lkio->nlkho", heads, self.width)
        return torch.einsum("nlkho,lkhg->nlkgo", narrow, self.mix).flatten(-2)


class ElasticAdapter(nn.Module):
    """LayerNorm → Linear r·d_t → SiLU → Dropout → Linear, per layer and kind; r = 0.5, 1 or 2 by the teacher's size."""

    def __init__(self, layers: int, width_in: int, width_out: int, ratio: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = max(1, round(ratio * width_in))
        self.norm_weight = nn.Parameter(torch.ones(layers, 2, width_in))
        self.norm_bias = nn.Parameter(torch.zeros(layers, 2, width_in))
        self.expand = LinearAdapter(layers, width_in, hidden)
        self.dropout = nn.Dropout(dropout)
        self.project = LinearAdapter(layers, hidden, width_out)

    def forward(self, x: KVIn) -> KVOut:
        normed = layer_norm(x, x.shape[-1:]) * self.norm_weight + self.norm_bias
        return self.project(self.dropout(nn.functional.silu(self.expand(normed))))


class ZSpacePair(nn.Module):
    """Projects teacher and student into one shared width, for teachers whose KV the student's space cannot hold (encoders).

    `forward` takes the teacher's KV, `project_student` the student's; both give `[tokens, layers, 2, shared_width]`.
    """

    def __init__(self, layers: int, width_in: int, width_out: int, shared_width: int) -> None:
        super().__init__()
        self.teacher = LinearAdapter(layers, width_in, shared_width)
        self.student = LinearAdapter(layers, width_out, shared_width)

    def forward(self, x: KVIn) -> Float[Tensor, "tokens layers 2 shared_width"]:
        return self.teacher(x)

    def project_student(self, y: KVOut) -> Float[Tensor, "tokens layers 2 shared_width"]:
        """The student's KV in the shared width."""
        return self.student(y)


@dataclass(frozen=True)
class AdapterShape:
    """What an adapter is built from; each kind uses what it needs. `shared_width` None: the smaller of the two widths."""

    layers: int
    width_in: int
    width_out: int
    heads_in: int | None = None
    heads_out: int | None = None
    ratio: float = 1.0
    dropout: float = 0.0
    shared_width: int | None = None


def _two_step(shape: AdapterShape) -> nn.Module:
    if shape.heads_in is None or shape.heads_out is None:
        raise ValueError("adapter: two_step needs heads_in and heads_out")
    return TwoStepAdapter(shape.layers, shape.width_in, shape.width_out, shape.heads_in, shape.heads_out)


@needs("both sides")
def _z_space(shape: AdapterShape) -> nn.Module:
    shared = min(shape.width_in, shape.width_out) if shape.shared_width is None else shape.shared_width
    return ZSpacePair(shape.layers, shape.width_in, shape.width_out, shared)


ADAPTERS: dict[str, Callable[[AdapterShape], nn.Module]] = {
    "linear": lambda s: LinearAdapter(s.layers, s.width_in, s.width_out),
    "two_step": _two_step,
    "elastic": lambda s: ElasticAdapter(s.layers, s.width_in, s.width_out, s.ratio, s.dropout),
    "z_space": _z_space,
}


def build_adapter(kind: str, shape: AdapterShape) -> nn.Module:
    """A new adapter of one kind (linear, two_step, elastic, z_space, or `module:Class`, called with the shape).

    Raises ValueError for an unknown kind, and for two_step without heads that divide the widths.
    """
    return registered(ADAPTERS, kind)(shape)


def group_average(heads_in: int, heads_out: int) -> Float[Tensor, "heads_in heads_out"]:
    """Head g averages the heads in its share [g, g+1)·H_in/H_out, or copies the head it lies in; columns sum to 1."""
    edges_in, edges_out = torch.arange(heads_in + 1) * heads_out, torch.arange(heads_out + 1) * heads_in
    shared = torch.minimum(edges_in[1:, None], edges_out[1:]) - torch.maximum(edges_in[:-1, None], edges_out[:-1])
    return shared.clamp_min(0) / heads_in


def head_dim(width: int, heads: int) -> int:
    """Width of one head. Raises ValueError where the heads do not divide the width."""
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}")
    return width // heads
