"""Closed-form maps from a teacher's KV space to the student's (method.md §4–5).

A map acts on the flattened heads, `kv_heads·head_dim` of the teacher → of the student, one for each student layer and for K and V
apart, because independently trained models hold them in unrelated bases. Everything is fitted in float64 on rows that are neither
trained on nor tested on, against the raw student.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtkv.provenance.files import atomic_path
from mtkv.registry import registered

SMALLEST_CHANNEL = 0.01  # of the spread of its layer and kind: a channel that hardly moves is not blown up to noise
MapFunction = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class KVMap:
    """A fitted map and the statistics that normalise its targets, all per student layer and kind (K, V).

    target(x) = ((x − x_mean) @ weight) / scale, to be compared with (y − y_mean) / scale for the student's y.
    `x_scale`, `y_scale` and `scale` are the standard deviations of teacher, raw student and mapped teacher per layer and kind;
    `channel_std` is that of the scaled target per channel, `x_channel_std` that of the teacher's scaled KV.
    `layer_weights` says which teacher layers x was combined from.
    """

    weight: Float[Tensor, "student_layers 2 teacher_width student_width"]
    x_mean: Float[Tensor, "student_layers 2 teacher_width"]
    y_mean: Float[Tensor, "student_layers 2 student_width"]
    x_scale: Float[Tensor, "student_layers 2"]
    y_scale: Float[Tensor, "student_layers 2"]
    scale: Float[Tensor, "student_layers 2"]
    channel_std: Float[Tensor, "student_layers 2 student_width"]
    x_channel_std: Float[Tensor, "student_layers 2 teacher_width"]
    layer_weights: Float[Tensor, "student_layers teacher_layers"]

    @property
    def teacher_layers(self) -> Int[Tensor, " student_layers"]:
        """The teacher layer of largest weight for each student layer."""
        return self.layer_weights.argmax(dim=-1)

    def save(self, path: Path) -> None:
        """Write as safetensors, atomically."""
        with atomic_path(path) as temporary:
            save_file({field.name: getattr(self, field.name).contiguous() for field in fields(self)}, temporary)

    @classmethod
    def load(cls, path: Path) -> "KVMap":
        """The map that `save` wrote."""
        return cls(**load_file(path))

    def to(self, device: torch.device) -> "KVMap":
        """The same map on another device."""
        return KVMap(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def target(
        self, x: Float[Tensor, "tokens student_layers 2 teacher_width"]
    ) -> Float[Tensor, "tokens student_layers 2 student_width"]:
        """The teacher's KV in the student's space, centred and scaled. `x` holds the combined teacher layers in order."""
        centred = x.to(self.weight.dtype) - self.x_mean
        return torch.einsum("nlki,lkio->nlko", centred, self.weight) / self.scale[..., None]


def normalisation_scale(
    spread: Float[Tensor, "student_layers 2"], channel_std: Float[Tensor, "student_layers 2 width"], unit: str
) -> Float[Tensor, "student_layers 2 _"]:
    """What KV are divided by: the `spread` of each layer and kind, or with `unit` channel that of each channel."""
    whole = spread[..., None]
    return whole * channel_std.clamp_min(SMALLEST_CHANNEL) if unit == "channel" else whole


def combine_layers(
    kv: Float[Tensor, "tokens stored 2 width"], weights: Float[Tensor, "student_layers stored"]
) -> Float[Tensor, "tokens student_layers 2 width"]:
    """Weighted sum of the stored teacher layers for each student layer; `weights`: the columns of `layer_weights` that are stored."""
    return torch.einsum("ntkw,st->nskw", kv, weights.to(kv))


def identity(x: Float[Tensor, "*b tokens in"], y: Float[Tensor, "*b tokens out"], strength: float) -> Tensor:
    """The identity matrix: the teacher's channels unchanged. Raises ValueError where the widths differ."""
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"map: identity needs equal widths, the teacher has {x.shape[-1]} channels and the student {y.shape[-1]}; "
            "ridge and procrustes take any"
        )
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand(*x.shape[:-2], -1, -1)


def ridge(
    x: Float[Tensor, "*b tokens in"], y: Float[Tensor, "*b tokens out"], strength: float
) -> Float[Tensor, "*b in out"]:
    """argmin_W ‖xW − y‖² + λ‖W‖² for centred x and y, with λ = strength · trace(xᵀx)/in, so that `strength` is free of scale."""
    _check_tokens(x)
    gram = x.mT @ x
    penalty = strength * gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return solve_positive(gram + penalty[..., None, None] * eye, x.mT @ y)


def solve_positive(
    matrix: Float[Tensor, "... width width"], right: Float[Tensor, "... width other"]
) -> Float[Tensor, "... width other"]:
    """Solution of `matrix @ z = right` for a symmetric matrix without negative eigenvalues; the smallest one where it is singular.

    By Cholesky, not LU: torch's batched LU fails on a CPU with more than one thread (MKL, "incorrect on entry to DLASWP").
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    if failed.any() or (pivots.amin(dim=-1) < 1e-7 * pivots.amax(dim=-1)).any():
        return torch.linalg.pinv(matrix, hermitian=True) @ right
    return torch.cholesky_solve(right, factor)


def procrustes(
    x: Float[Tensor, "*b tokens in"], y: Float[Tensor, "*b tokens out"], strength: float
) -> Float[Tensor, "*b in out"]:
    """s·Q with Q = UVᵀ of the SVD xᵀy = USVᵀ and s = tr(S)/‖xQ‖²: a rotation (or reflection) and one scale factor (Schönemann 1966).

    Between different widths Q is semi-orthogonal: it maximises tr(Qᵀxᵀy), and s is the best factor for that Q.
    """
    _check_tokens(x)
    u, s, vh = torch.linalg.svd(x.mT @ y, full_matrices=False)
    turn = u @ vh
    size = (x @ turn).square().sum(dim=(-2, -1)).clamp_min(torch.finfo(x.dtype).tiny)
    return turn * (s.sum(dim=-1) / size)[..., None, None]


MAP_FUNCTIONS: dict[str, MapFunction] = {"identity": identity, "ridge": ridge, "procrustes": procrustes}


def fit_map(
    teacher: Float[Tensor, "tokens student_layers 2 teacher_width"],
    student: Float[Tensor, "tokens student_layers 2 student_width"],
    layer_weights: Float[Tensor, "student_layers teacher_layers"] | np.ndarray | Sequence[int],
    method: str,
    strength: float,
) -> KVMap:
    """Fit one map on matched tokens; `teacher` holds the combined layers (`combine_layers`), `layer_weights` how they were combined
    (or one teacher layer per student layer).

    Raises ValueError for an unknown method, for fewer tokens than teacher channels, and from `identity` for unequal widths.
    """
    function = registered(MAP_FUNCTIONS, method)
    fits = [_fit_layer(teacher[:, i], student[:, i], function, strength) for i in range(teacher.shape[1])]
    stacked = {name: torch.stack([fit[name] for fit in fits]).float() for name in fits[0]}
    return KVMap(**stacked, layer_weights=_weight_matrix(layer_weights))


def _fit_layer(x: Tensor, y: Tensor, function: MapFunction, strength: float) -> dict[str, Tensor]:
    """The fields of `KVMap` for one student layer, from K and V `[tokens, 2, width]` of both sides, in float64."""
    x, y = x.double().transpose(0, 1), y.double().transpose(0, 1)
    x_mean, y_mean = x.mean(dim=1), y.mean(dim=1)
    x, y = x - x_mean[:, None], y - y_mean[:, None]
    weight = function(x, y, strength)
    mapped = x @ weight
    scale = _spread(mapped)
    x_scale = _spread(x)
    found = {"weight": weight, "x_mean": x_mean, "y_mean": y_mean, "x_scale": x_scale, "y_scale": _spread(y)}
    found |= {"channel_std": _channel_std(mapped, scale), "x_channel_std": _channel_std(x, x_scale)}
    return found | {"scale": scale}


def _spread(centred: Float[Tensor, "*b tokens width"]) -> Float[Tensor, "*b"]:
    return centred.square().mean(dim=(-2, -1)).sqrt().clamp_min(1e-8)


def _channel_std(centred: Float[Tensor, "2 tokens width"], spread: Float[Tensor, "2"]) -> Float[Tensor, "2 width"]:
    return (centred / spread[:, None, None]).square().mean(dim=1).sqrt()


def _weight_matrix(layers: Tensor | np.ndarray | Sequence[int]) -> Float[Tensor, "student_layers teacher_layers"]:
    weights = torch.as_tensor(layers)
    return (torch.nn.functional.one_hot(weights) if weights.ndim == 1 else weights).float()


def _check_tokens(x: Tensor) -> None:
    tokens, width = x.shape[-2:]
    if tokens <= width:
        raise ValueError(
            f"a map needs more matched tokens than teacher channels: {tokens} tokens for {width} channels; "
            "raise data.calibration_rows"
        )


def relative_error(
    prediction: Float[Tensor, "tokens width"], truth: Float[Tensor, "tokens width"], mean: Float[Tensor, " width"]
) -> float:
    """‖truth − prediction‖² / ‖truth − mean‖²: 0 is exact, 1 is no better than the mean of the calibration rows."""
    return float((truth - prediction).square().sum() / (truth - mean).square().sum())


class FrozenMap(nn.Module):
    """A closed-form `KVMap` as buffers: it moves with the module it is in and is neither trained nor saved."""

    weight: Tensor
    x_mean: Tensor
    y_mean: Tensor
    x_scale: Tensor
    y_scale: Tensor
    scale: Tensor
    channel_std: Tensor
    x_channel_std: Tensor

    def __init__(self, kv_map: KVMap) -> None:
        super().__init__()
        for name in self.__class__.__annotations__:
            self.register_buffer(name, getattr(kv_map, name), persistent=False)

    def unit(self, x: Float[Tensor, "tokens student_layers 2 teacher_width"], unit: str = "layer") -> Tensor:
        """The teacher's KV centred and divided by its own deviation, of each layer and kind or (`unit` channel) of each channel."""
        return (x.float() - self.x_mean) / normalisation_scale(self.x_scale, self.x_channel_std, unit)

    def target_scale(self, unit: str) -> Float[Tensor, "student_layers 2 _"]:
        """What the mapped teacher and the student are divided by before they are compared."""
        return normalisation_scale(self.scale, self.channel_std, unit)

    def forward(
        self, x: Float[Tensor, "tokens student_layers 2 teacher_width"]
    ) -> Float[Tensor, "tokens student_layers 2 student_width"]:
        """Mapped into the student's space: centred, not normalised. Layer by layer, so that only the result is large."""
        mapped = self.weight.new_empty(len(x), *self.y_mean.shape)
        for layer, kv in enumerate(x.unbind(1)):
            centred = kv.float() - self.x_mean[layer]
            mapped[:, layer] = torch.einsum("nki,kio->nko", centred, self.weight[layer])
        return mapped
