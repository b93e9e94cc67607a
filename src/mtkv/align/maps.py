"""Closed-form maps from a teacher's KV space to the student's (method.md §4–5).

A map acts on the flattened heads, `kv_heads·head_dim` of the teacher → of the student, one for each student layer and for K and V
apart, because independently trained models hold them in unrelated bases. Everything is fitted in float64 on rows that are neither
trained on nor tested on, against the raw student.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtkv.provenance.files import atomic_path

MapFunction = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class KVMap:
    """A fitted map and the statistics that make its targets comparable. `pairs` = student layers × {K, V}.

    target(x) = ((x − x_mean) @ weight) / scale, to be compared with (y − y_mean) / scale for the student's y.
    `scale` is the standard deviation of the mapped teacher per layer and kind; `channel_std` that of the scaled target per channel.
    """

    weight: Float[Tensor, "student_layers 2 teacher_width student_width"]
    x_mean: Float[Tensor, "student_layers 2 teacher_width"]
    y_mean: Float[Tensor, "student_layers 2 student_width"]
    scale: Float[Tensor, "student_layers 2"]
    channel_std: Float[Tensor, "student_layers 2 student_width"]
    teacher_layers: Float[Tensor, " student_layers"]

    def save(self, path: Path) -> None:
        """Write as safetensors, atomically."""
        with atomic_path(path) as temporary:
            save_file({field.name: getattr(self, field.name).contiguous() for field in fields(self)}, temporary)

    @classmethod
    def load(cls, path: Path) -> "KVMap":
        """Read what `save` wrote."""
        return cls(**load_file(path))

    def to(self, device: torch.device) -> "KVMap":
        """The same map on another device."""
        return KVMap(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def target(
        self, x: Float[Tensor, "tokens student_layers 2 teacher_width"]
    ) -> Float[Tensor, "tokens student_layers 2 student_width"]:
        """The teacher's KV in the student's space, centred and scaled. `x` holds the mapped teacher layers in order."""
        centred = x.to(self.weight.dtype) - self.x_mean
        return torch.einsum("nlki,lkio->nlko", centred, self.weight) / self.scale[..., None]


def ridge(x: Float[Tensor, "tokens in"], y: Float[Tensor, "tokens out"], strength: float) -> Float[Tensor, "in out"]:
    """argmin_W ‖xW − y‖² + λ‖W‖² for centred x and y, with λ = strength · trace(xᵀx)/in, so that it has no unit."""
    gram = x.T @ x
    penalty = strength * gram.diagonal().mean()
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), x.T @ y)


MAP_FUNCTIONS: dict[str, MapFunction] = {"ridge": ridge}


def fit_map(
    teacher: Float[Tensor, "tokens student_layers 2 teacher_width"],
    student: Float[Tensor, "tokens student_layers 2 student_width"],
    teacher_layers: list[int],
    method: str,
    strength: float,
) -> KVMap:
    """Fit one map on matched tokens. Raises ValueError when there are fewer tokens than teacher channels."""
    tokens, layers, _, width = teacher.shape
    if tokens <= width:
        raise ValueError(
            f"a map needs more matched tokens than teacher channels: {tokens} tokens for {width} channels; "
            "raise data.calibration_rows"
        )
    x_mean, y_mean = teacher.double().mean(0), student.double().mean(0)
    weight = torch.stack(
        [
            torch.stack(
                [
                    MAP_FUNCTIONS[method](
                        teacher[:, layer, kind].double() - x_mean[layer, kind],
                        student[:, layer, kind].double() - y_mean[layer, kind],
                        strength,
                    )
                    for kind in range(2)
                ]
            )
            for layer in range(layers)
        ]
    )
    mapped = torch.einsum("nlki,lkio->nlko", teacher.double() - x_mean, weight)
    scale = mapped.square().mean((0, 3)).sqrt().clamp_min(1e-8)
    channel_std = (mapped / scale[..., None]).square().mean(0).sqrt()
    return KVMap(
        weight=weight.float(),
        x_mean=x_mean.float(),
        y_mean=y_mean.float(),
        scale=scale.float(),
        channel_std=channel_std.float(),
        teacher_layers=torch.tensor(teacher_layers),
    )


def relative_error(
    prediction: Float[Tensor, "tokens width"], truth: Float[Tensor, "tokens width"], mean: Float[Tensor, " width"]
) -> float:
    """‖truth − prediction‖² / ‖truth − mean‖²: 0 is exact, 1 is no better than the mean of the calibration rows."""
    return float((truth - prediction).square().sum() / (truth - mean).square().sum())
