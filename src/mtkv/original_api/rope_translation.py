"""Rotate keys after RoPE from a teacher's angles to a student's (method.md §11; Su et al. 2021, arXiv 2104.09864).

This extends or compresses context; it does not translate keys between models. Studies distil keys *before* RoPE (`mtkv.kv`), which need
none of it.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtkv.models.rope_scaling import ntk_base, two_thirds_base

# (base, dim d, stretch s, time T, trained length L) -> base after scaling, divisor of the positions
SCALING_METHODS: dict[str, Callable[[float, int, float, int, int], tuple[float, float]]] = {
    # base·s^(d/(d−2)) (bloc97 2023)
    "ntk": lambda base, dim, stretch, time, trained: (ntk_base(base, dim, stretch), 1.0),
    # all positions divided by s (Chen et al. 2023, arXiv 2306.15595)
    "linear": lambda base, dim, stretch, time, trained: (base, stretch),
    # NTK that starts beyond the trained length: base·(s·T/L − (s − 1))^(d/(d−2)) with T at least L
    "dynamic": lambda base, dim, stretch, time, trained: (
        ntk_base(base, dim, stretch * max(time, trained) / trained - (stretch - 1)),
        1.0,
    ),
    # base·s^(2/3), the original design's exponent
    "ntk_two_thirds": lambda base, dim, stretch, time, trained: (two_thirds_base(base, dim, stretch), 1.0),
}


class MultiTeacherRoPEScaler:
    """Teachers given as (base, trained length); the stretch of each is s = student length ÷ teacher length.

    The student's angles are those of `student_base` (the teacher's own where None) after scaling by s. Keys are those of models that
    rotate halves (Llama, Qwen, Mistral, …), whole heads, unscaled.
    """

    def __init__(
        self,
        teacher_configs: Sequence[tuple[float, int]],
        student_max_len: int,
        scaling_method: str = "ntk",
        student_base: float | None = None,
    ) -> None:
        if scaling_method not in SCALING_METHODS:
            raise ValueError(f"scaling_method: {scaling_method!r} is not one of {', '.join(SCALING_METHODS)}")
        self.teacher_configs = list(teacher_configs)
        self.student_max_len = student_max_len
        self.scale = SCALING_METHODS[scaling_method]
        self.student_base = student_base

    def scale_kv_pairs(self, ks: Sequence[Tensor], vs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Keys `[…, time, dim]` of every teacher, rotated to the student's angles; values unchanged.

        One rotation by the difference of the angles undoes the teacher's and does the student's, in float64; where base and length agree
        nothing changes. Raises ValueError for another number of teachers.
        """
        if not len(ks) == len(vs) == len(self.teacher_configs):
            raise ValueError(f"{len(self.teacher_configs)} teachers, but {len(ks)} keys and {len(vs)} values")
        return [self._turn(k, *config) for k, config in zip(ks, self.teacher_configs, strict=True)], list(vs)

    def _turn(
        self, key: Float[Tensor, "*batch time dim"], base: float, trained: int
    ) -> Float[Tensor, "*batch time dim"]:
        time, dim = key.shape[-2:]
        student_base = base if self.student_base is None else self.student_base
        scaled_base, divisor = self.scale(student_base, dim, self.student_max_len / trained, time, trained)
        if (scaled_base, divisor) == (base, 1.0):
            return key
        position = torch.arange(time, dtype=torch.float64, device=key.device)
        change = inverse_frequencies(scaled_base, dim).to(key.device) / divisor - inverse_frequencies(base, dim).to(
            key.device
        )
        return rotate(key, position[:, None] * change)


def inverse_frequencies(base: float, dim: int) -> Float[Tensor, " half"]:
    """base^(−2i/d) for each pair of channels, float64."""
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def rotate(x: Float[Tensor, "*batch time dim"], angle: Float[Tensor, "time half"]) -> Float[Tensor, "*batch time dim"]:
    """Rotate the channel pairs (i, i + d/2) by `angle`; negative angles undo positive ones."""
    first, second = x.to(angle.dtype).chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
