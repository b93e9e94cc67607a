"""Adapters on `[batch, heads, time, dim]`, under the names of the original design (method.md §4).

Same ideas as `mtkv.align.adapters`, with weights shared by all layers as the guides have it. Head counts are KV heads
(`num_key_value_heads`), and a head's width is `head_dim`, not `hidden // heads`.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtkv.align.adapters import group_average, head_dim

TeacherHeads = Float[Tensor, "*batch heads_t time dim_t"]
StudentHeads = Float[Tensor, "*batch heads_s time dim_s"]
KINDS = ("key", "value")


class MultiTeacherHeadDimAdapter(nn.Module):
    """One linear map of the flattened heads per teacher and kind: (d_model, heads) of each teacher → of the student.

    Takes lists of `[batch, heads, time, dim]`, or of flat `[batch, time, d_model]` which stay flat.
    """

    def __init__(self, teacher_configs: Sequence[tuple[int, int]], student_dim: int, student_heads: int) -> None:
        super().__init__()
        self.student_heads = student_heads
        head_dim(student_dim, student_heads)
        for width, heads in teacher_configs:
            head_dim(width, heads)
        self.adapters = nn.ModuleList(
            nn.ModuleDict({kind: nn.Linear(width, student_dim) for kind in KINDS}) for width, _ in teacher_configs
        )

    def forward(self, ks: Sequence[Tensor], vs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """K and V of every teacher at the student's heads and width. Raises ValueError for another number of teachers."""
        if len(ks) != len(self.adapters) or len(vs) != len(self.adapters):
            raise ValueError(f"{len(self.adapters)} teachers, but {len(ks)} keys and {len(vs)} values")
        adapted = [
            [self._adapt(pair[kind], kv) for pair, kv in zip(self.adapters, side, strict=True)]  # type: ignore[index]
            for kind, side in zip(KINDS, (ks, vs), strict=True)
        ]
        return adapted[0], adapted[1]

    def _adapt(self, linear: nn.Module, kv: Tensor) -> Tensor:
        return linear(kv) if kv.ndim == 3 else split_heads(linear(join_heads(kv)), self.student_heads)


class KVProjector(nn.Module):
    """Two steps, for K and V apart: each head's width Dt → Ds, then a mix of heads Ht → Hs that starts as the group average."""

    def __init__(self, Ht: int, Hs: int, Dt: int, Ds: int) -> None:  # noqa: N803 (the guides' names)
        super().__init__()
        self.width = nn.ModuleDict({kind: nn.Linear(Dt, Ds) for kind in KINDS})
        self.mix = nn.ParameterDict({kind: nn.Parameter(group_average(Ht, Hs)) for kind in KINDS})

    def forward(self, k: TeacherHeads, v: TeacherHeads) -> tuple[StudentHeads, StudentHeads]:
        """K and V `[…, Ht, time, Dt]` → `[…, Hs, time, Ds]`."""
        key, value = (
            torch.einsum("...hto,hg->...gto", self.width[kind](x), self.mix[kind])
            for kind, x in zip(KINDS, (k, v), strict=True)
        )
        return key, value


class KVDimensionProjector(nn.Module):
    """Elastic bottleneck per teacher, K and V apart: LayerNorm → Linear r·d_t → SiLU → Dropout → Linear.

    `teacher_configs[name]`: `d_model`, optional `num_kv_heads` and `head_dim`. Without `num_kv_heads` the KV are flat,
    `[…, time, d_model]` → `[…, time, student_d_model]`. With it they are `[…, num_kv_heads, time, head_dim]` →
    `[…, student_num_kv_heads, time, student_head_dim]`, the student's head width being the teacher's where it is not given.
    A `head_dim` that is not given is read from the first KV, because `d_model / num_kv_heads` would be wrong for grouped queries:
    project once before the optimizer collects the parameters.
    """

    def __init__(
        self,
        teacher_configs: Mapping[str, Mapping[str, int]],
        student_d_model: int,
        student_num_kv_heads: int | None = None,
        mlp_ratio: float = 1.0,
        dropout: float = 0.0,
        student_head_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.teacher_configs = {name: dict(config) for name, config in teacher_configs.items()}
        self.student_d_model = student_d_model
        self.student_num_kv_heads = student_num_kv_heads
        self.student_head_dim = student_head_dim
        self.mlp_ratio, self.dropout = mlp_ratio, dropout
        self.projectors = nn.ModuleDict()  # by index, because module names may not hold the dots of "Qwen2.5-7B"
        for name, config in self.teacher_configs.items():
            if "num_kv_heads" not in config:
                self._build(name, config["d_model"], student_d_model)
            elif "head_dim" in config:
                self._build(name, config["num_kv_heads"] * config["head_dim"], self._student_width(config["head_dim"]))

    def project_teacher_kv(self, teacher_name: str, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """One teacher's K and V in the student's heads and width. Raises ValueError for an unknown teacher or another shape."""
        if teacher_name not in self.teacher_configs:
            raise ValueError(f"teacher {teacher_name!r} is not one of {', '.join(self.teacher_configs)}")
        heads = self.teacher_configs[teacher_name].get("num_kv_heads")
        if heads is not None and (K.ndim < 4 or K.shape[-3] != heads):
            raise ValueError(f"{teacher_name}: expected [..., {heads} heads, time, head_dim], got {tuple(K.shape)}")
        width = K.shape[-1] if heads is None else heads * K.shape[-1]
        if self._place(teacher_name) not in self.projectors:
            self._build(teacher_name, width, self._student_width(K.shape[-1]), K)
        pair = self.projectors[self._place(teacher_name)]
        if width != pair["key"][0].normalized_shape[0]:  # type: ignore[index]
            raise ValueError(f"{teacher_name}: {width} channels do not fit {pair['key'][0]}")  # type: ignore[index]
        key, value = (
            pair[kind](x) if heads is None else split_heads(pair[kind](join_heads(x)), self._student_heads())  # type: ignore[index]
            for kind, x in zip(KINDS, (K, V), strict=True)
        )
        return key, value

    def _student_heads(self) -> int:
        if self.student_num_kv_heads is None:
            raise ValueError("teachers with num_kv_heads need student_num_kv_heads")
        return self.student_num_kv_heads

    def _student_width(self, teacher_head_dim: int) -> int:
        return self._student_heads() * (self.student_head_dim or teacher_head_dim)

    def _build(self, name: str, width_in: int, width_out: int, like: Tensor | None = None) -> None:
        hidden = max(1, round(self.mlp_ratio * width_in))
        pair = nn.ModuleDict(
            {
                kind: nn.Sequential(
                    nn.LayerNorm(width_in),
                    nn.Linear(width_in, hidden),
                    nn.SiLU(),
                    nn.Dropout(self.dropout),
                    nn.Linear(hidden, width_out),
                )
                for kind in KINDS
            }
        )
        self.projectors[self._place(name)] = pair if like is None else pair.to(like)

    def _place(self, name: str) -> str:
        return str(list(self.teacher_configs).index(name))


def join_heads(kv: Float[Tensor, "*batch heads time dim"]) -> Float[Tensor, "*batch time width"]:
    """Heads side by side, head 0 first."""
    return kv.transpose(-3, -2).flatten(-2)


def split_heads(kv: Float[Tensor, "*batch time width"], heads: int) -> Float[Tensor, "*batch heads time dim"]:
    """The inverse of `join_heads`."""
    return kv.unflatten(-1, (heads, -1)).transpose(-3, -2)
