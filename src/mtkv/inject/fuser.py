"""The trained part of an injection arm: from the teachers' KV at a token and the student's own to a correction of the student's.

Both sides come standardised, the teacher by channel, the student by layer and kind, with the statistics of the arm's maps. Each teacher
has a head of its own; the router mixes their corrections, Σ αᵢ·Δᵢ, from the same queries and prototypes as when KV are matched. On disk:
`fuser.safetensors` (weights and maps) and `fuser.json` (the arm's `kv` section, its teachers, which of their layers are read).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mtkv.align.closed_form_maps import FrozenMap, KVMap, normalisation_scale
from mtkv.config.kv import KVConfig
from mtkv.config.models import ModelConfig
from mtkv.distill.controls import control_of
from mtkv.fuse.prototypes import prototypes_of, query_of
from mtkv.fuse.routers import PerLayer, build_router, fuse
from mtkv.models.paths import FUSER_FILE
from mtkv.provenance.files import read_json, write_json
from mtkv.registry import registered

SETTINGS = "fuser.json"
FORMAT = 1
Own = Float[Tensor, "tokens layers 2 width"]
Theirs = Float[Tensor, "tokens layers 2 teacher_width"]


@dataclass(frozen=True)
class HeadShape:
    """Layers of the student, channels of K (as many of V) of student and teacher, and the hidden width."""

    layers: int
    width: int
    teacher_width: int
    hidden: int

    @property
    def inputs(self) -> int:
        """Numbers that a head reads of a token and layer: K and V of both."""
        return 2 * (self.width + self.teacher_width)


class LinearHead(nn.Module):
    """One linear layer from K and V of all layers, own and teacher's, to all corrections."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.output = _zero_linear(shape.layers * shape.inputs, shape.layers * 2 * shape.width)

    def forward(self, own: Own, theirs: Theirs) -> Own:
        corrections: Tensor = self.output(torch.cat([own, theirs], -1).flatten(1))
        return corrections.view_as(own)


class MLPHead(nn.Module):
    """As `LinearHead`, with one hidden layer."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.hidden = nn.Linear(shape.layers * shape.inputs, shape.hidden)
        self.output = _zero_linear(shape.hidden, shape.layers * 2 * shape.width)

    def forward(self, own: Own, theirs: Theirs) -> Own:
        corrections: Tensor = self.output(F.silu(self.hidden(torch.cat([own, theirs], -1).flatten(1))))
        return corrections.view_as(own)


class GatedHead(nn.Module):
    """Each layer for itself: a hidden layer over its own K and V and those of the teacher layer mapped to it, times σ(gate) of the layer's
    K and of its V, which says how far the layer is open."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.hidden = PerLayer(shape.inputs, shape.hidden, shape.layers)
        nn.init.normal_(self.hidden.weight, std=shape.inputs**-0.5)
        self.output = PerLayer(shape.hidden, 2 * shape.width, shape.layers)
        self.gate = nn.Parameter(torch.zeros(shape.layers, 2))

    def forward(self, own: Own, theirs: Theirs) -> Own:
        hidden = F.silu(self.hidden(torch.cat([own, theirs], -1).flatten(2)))
        corrections: Tensor = self.output(hidden).view_as(own) * self.gate.sigmoid()[..., None]
        return corrections


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


HEADS: dict[str, type[nn.Module]] = {"mlp": MLPHead, "linear": LinearHead, "gated": GatedHead}


class KVFuser(nn.Module):
    """`maps` and `teachers`: one per teacher of `config`, in its order; the maps are fitted against the student as it is."""

    def __init__(self, config: KVConfig, maps: Sequence[KVMap], teachers: Sequence[ModelConfig]) -> None:
        super().__init__()
        assert config.fuser is not None
        self.config, self.kv_maps, self.teachers = config, list(maps), list(teachers)
        self.control = control_of(config.control)
        self.maps = nn.ModuleList(FrozenMap(kv_map) for kv_map in maps)
        layers, _, width = maps[0].y_mean.shape
        head = registered(HEADS, config.fuser.head)
        self.heads = nn.ModuleList(
            head(HeadShape(layers, width, width if self.control.own else kv_map.x_mean.shape[-1], config.fuser.hidden))
            for kv_map in maps
        )
        self.router = build_router(config.fusion, len(maps), layers, 2 * width)

    def forward(
        self, own_kv: Own, sample: Int[Tensor, " tokens"], teacher_kv: Sequence[Theirs], batch: int, **context: Tensor
    ) -> tuple[Own, Float[Tensor, "batch teachers *layers"]]:
        """Corrections of the student's K before RoPE and V at tokens of `batch` rows, and the routing weights. `sample`: each token's row;
        `context` is the router's."""
        frozen: list[Any] = list(self.maps)
        centred = own_kv.float() - torch.stack([kv_map.y_mean for kv_map in frozen]).mean(0)
        spread = torch.stack([kv_map.y_scale for kv_map in frozen]).mean(0)[..., None]
        own = centred / spread
        given = [self._given(kv_map, kv, own) for kv_map, kv in zip(frozen, teacher_kv, strict=True)]
        corrections = [head(own, theirs) for head, theirs in zip(self.heads, given, strict=True)]
        weights = self._route(centred, given, spread, sample, batch, context)
        fused = fuse(torch.stack(corrections, 1), weights, sample) if len(given) > 1 else corrections[0]
        return fused * spread, weights

    def _given(self, kv_map: FrozenMap, kv: Theirs, own: Own) -> Tensor:
        """What a head reads of its teacher: standardised, or what the arm's control puts in its place."""
        if self.control.own:
            return own
        unit = kv_map.unit(kv, "channel")
        return self.control.values(unit) if self.control.values else unit

    def _route(
        self, centred: Own, given: list[Tensor], spread: Tensor, sample: Tensor, batch: int, context: dict[str, Tensor]
    ) -> Float[Tensor, "batch teachers *layers"]:
        """Both sides in the student's space, each layer and kind divided by the student's own spread."""
        fusion = self.config.fusion
        kvs = torch.stack(
            [self._in_student_space(kv_map, x, spread) for kv_map, x in zip(self.maps, given, strict=True)], 1
        )
        query = query_of(centred.detach(), sample, batch, fusion.prototypes, fusion.per_layer, spread)
        prototypes = prototypes_of(kvs, sample, batch, fusion.prototypes, fusion.per_layer, unit=spread)
        weights: Tensor = self.router(query, prototypes, **context)
        return weights

    def _in_student_space(self, kv_map: Any, given: Tensor, spread: Tensor) -> Own:
        if self.control.own:
            return given * spread
        mapped: Tensor = kv_map(
            given * normalisation_scale(kv_map.x_scale, kv_map.x_channel_std, "channel") + kv_map.x_mean
        )
        return mapped

    def save(self, folder: Path) -> None:
        """Write the two files into a student's folder; the caller makes it atomic."""
        tensors = {f"trained.{name}": tensor for name, tensor in self.state_dict().items()}
        for number, kv_map in enumerate(self.kv_maps):
            tensors |= {f"map{number}.{field.name}": getattr(kv_map, field.name) for field in fields(kv_map)}
        save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, folder / FUSER_FILE)
        teachers = dict(zip(self.config.teachers, self.teachers, strict=True))
        settings = {
            "format": FORMAT,
            "kv": self.config.model_dump(mode="json"),
            "teachers": {name: teacher.model_dump(mode="json") for name, teacher in teachers.items()},
            "layers": {n: m.teacher_layers.tolist() for n, m in zip(teachers, self.kv_maps, strict=True)},
        }
        write_json(folder / SETTINGS, settings)

    @classmethod
    def load(cls, folder: Path, given: Mapping[str, ModelConfig]) -> Self:
        """The fuser of a folder, whose teachers must be among `given`, by id. Raises ValueError where one is not, or is another model."""
        settings, tensors = read_json(folder / SETTINGS), load_file(folder / FUSER_FILE)
        if settings.get("format") != FORMAT:
            raise ValueError(
                f"{folder / SETTINGS}: format {settings.get('format')!r}, this version reads {FORMAT}; train it again"
            )
        config = KVConfig.model_validate(settings["kv"])
        wanted = {name: ModelConfig.model_validate(teacher) for name, teacher in settings["teachers"].items()}
        if missing := [name for name, teacher in wanted.items() if given.get(name) != teacher]:
            raise ValueError(
                f"{folder}: this student reads the KV of {', '.join(wanted)}, but {', '.join(missing)} "
                "(as it was in training) is not given; without its teachers it is another model"
            )
        maps = [
            KVMap(**{field.name: tensors[f"map{number}.{field.name}"] for field in fields(KVMap)})
            for number in range(len(wanted))
        ]
        fuser = cls(config, maps, list(wanted.values()))
        trained = {name.removeprefix("trained."): x for name, x in tensors.items() if name.startswith("trained.")}
        fuser.load_state_dict(trained)
        return fuser
