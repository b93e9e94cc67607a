"""Bring a teacher's KV to the student's tokens and layers: the calls of the original design (method.md §2), on tensors.

Time is the second to last dimension throughout, so `[batch, heads, time, dim]` and `[batch, time, width]` both work. A mask is True where
there is something to compare; KV where it is False is zero and must be left out of the loss. Layer maps of several teachers are
`{student layer: [(teacher layer, weight), …]}`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from mtkv.align.byte_spans import printed_spans
from mtkv.align.layers import layer_weights


def build_char_align_matrix(
    student_tokens: Sequence[str], teacher_tokens: Sequence[str], text: str, method: str = "overlap"
) -> Float[Tensor, "student_time teacher_time"]:
    """How much each student token overlaps each teacher token in bytes of `text`; tokens as tokenizers print them (`printed_spans`).

    `overlap`: shared ÷ student span, rows sum to 1 (all zero for a token that shares nothing). `iou`: plain shared ÷ union, as the
    original design has it; it punishes nesting, so its rows do not sum to 1. Raises ValueError for another method.
    """
    if method not in ALIGN_METHODS:
        raise ValueError(f"method: {method!r} is not one of {', '.join(ALIGN_METHODS)}")
    student, teacher = printed_spans(student_tokens, text), printed_spans(teacher_tokens, text)
    (my_start, my_end), (start, end) = (
        [torch.from_numpy(edge) for edge in (s.start, s.end)] for s in (student, teacher)
    )
    shared = torch.minimum(my_end[:, None], end) - torch.maximum(my_start[:, None], start)
    shared = shared.clamp_min(0).double()  # spans of −1 share nothing
    return ALIGN_METHODS[method](shared, (my_end - my_start)[:, None] + (end - start) - shared).float()


ALIGN_METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "overlap": lambda shared, union: _rows_to_one(shared),
    "iou": lambda shared, union: shared / union.clamp_min(1),
}


def apply_char_alignment(
    teacher_kv: Float[Tensor, "*batch teacher_time dim"], align_matrix: Float[Tensor, "student_time teacher_time"]
) -> tuple[Float[Tensor, "*batch student_time dim"], Bool[Tensor, " student_time"]]:
    """The teacher's KV at the student's tokens, and the mask of tokens that have a target.

    Rows are normalised first, so that a plain IoU matrix averages too instead of shrinking the KV.
    Raises ValueError when the matrix is for another teacher length.
    """
    if align_matrix.shape[-1] != teacher_kv.shape[-2]:
        raise ValueError(f"align_matrix has {align_matrix.shape[-1]} teacher tokens, the KV {teacher_kv.shape[-2]}")
    rows = _rows_to_one(align_matrix.to(teacher_kv.device)).to(teacher_kv.dtype)
    return rows @ teacher_kv, (rows > 0).any(dim=-1)


def align_sequence_lengths(
    teacher_kv: Float[Tensor, "*batch teacher_time dim_t"],
    student_kv: Float[Tensor, "*batch student_time dim_s"],
    align_matrix: Float[Tensor, "student_time teacher_time"] | None = None,
) -> tuple[Tensor, Tensor, Bool[Tensor, " time"], Bool[Tensor, " time"]]:
    """Both sides at one length, with a mask each. With a matrix the teacher moves to the student's tokens; then the shorter side is
    padded with zeros to the longer. Nothing is truncated."""
    teacher_mask = torch.ones(teacher_kv.shape[-2], dtype=torch.bool, device=teacher_kv.device)
    student_mask = torch.ones(student_kv.shape[-2], dtype=torch.bool, device=student_kv.device)
    if align_matrix is not None:
        teacher_kv, teacher_mask = apply_char_alignment(teacher_kv, align_matrix)
    length = max(len(teacher_mask), len(student_mask))
    return (
        pad(teacher_kv, (0, 0, 0, length - len(teacher_mask))),
        pad(student_kv, (0, 0, 0, length - len(student_mask))),
        pad(teacher_mask, (0, length - len(teacher_mask))),
        pad(student_mask, (0, length - len(student_mask))),
    )


def build_safe_linear_indices(
    batch: int, t_in: int, t_out: int, device: torch.device | str | None = None
) -> Int[Tensor, "batch t_out"]:
    """round(i·(T_in−1)/(T_out−1)) in integers, always in [0, T_in − 1] (0 for T_in = 0); one output step reads the last."""
    last, steps = max(t_in - 1, 0), max(t_out - 1, 1)
    numerator = torch.arange(t_out, device=device) * last if t_out > 1 else torch.full((t_out,), last, device=device)
    return ((2 * numerator + steps) // (2 * steps)).expand(batch, t_out)


def safe_time_resample(
    x: Float[Tensor, "batch *heads time dim"], indices: Int[Tensor, "*batch t_out"], return_mask: bool = False
) -> Tensor | tuple[Tensor, Bool[Tensor, "batch t_out"]]:
    """x at the given time steps, one list for all `[t_out]` or one per sample `[batch, t_out]`: long, clamped, on x's device.

    T = 0 gives zeros, T = 1 repeats the one step. `return_mask` adds the mask of what was really read (all False for T = 0).
    """
    batch, time = x.shape[0], x.shape[-2]
    steps = indices.to(device=x.device, dtype=torch.long).expand(batch, -1)
    if time == 0:
        out = x.new_zeros(*x.shape[:-2], steps.shape[-1], x.shape[-1])
    else:
        shape = (batch, *[1] * (x.ndim - 3), steps.shape[-1], 1)
        places = steps.clamp(0, time - 1).view(shape).expand(*x.shape[:-2], -1, x.shape[-1])
        out = x.gather(-2, places)
    return (out, torch.full(steps.shape, time > 0, device=x.device)) if return_mask else out


def _rows_to_one(rows: Tensor) -> Tensor:
    total = rows.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, rows / total.clamp_min(torch.finfo(rows.dtype).tiny), 0)


LayerMap = dict[int, list[tuple[int, float]]]


def build_multi_teacher_layer_map(
    teacher_layer_counts: Sequence[int],
    student_layers: int,
    strategy: str = "ratio",
    similarities: Sequence[np.ndarray] | None = None,
    top_k: int = 2,
) -> list[LayerMap]:
    """One map per teacher, every student layer a key, weights > 0 that sum to 1: `{0: [(0, 1.0)], 1: [(2, 0.5), (3, 0.5)]}`.

    `strategy`: see `mtkv.align.layers`; `cka` needs `similarities`, one `[student_layers, teacher_layers]` per teacher
    (`mtkv.align.cka_similarity`).
    """
    given = [None] * len(teacher_layer_counts) if similarities is None else list(similarities)
    matrices = [
        layer_weights(strategy, layers, student_layers, similarity, top_k)
        for layers, similarity in zip(teacher_layer_counts, given, strict=True)
    ]
    return [
        {student: [(int(t), float(row[t])) for t in np.flatnonzero(row)] for student, row in enumerate(weights)}
        for weights in matrices
    ]


def interpolate_teacher_layers(
    teacher_kvs: Sequence[Any],
    layer_map: Mapping[int, Sequence[tuple[int, float]]] | Sequence[Mapping[int, Sequence[tuple[int, float]]]],
    student_layers: int,
) -> list[Any]:
    """One teacher's KV at the student's layers: a list of tensors, or of (K, V) pairs, one per teacher layer → one per student layer.

    With a list of maps (what `build_multi_teacher_layer_map` returns), `teacher_kvs` and the result are lists with one entry per teacher.
    Raises ValueError where a student layer has no target or a teacher layer is missing.
    """
    if not isinstance(layer_map, Mapping):
        pairs = zip(teacher_kvs, layer_map, strict=True)
        return [interpolate_teacher_layers(kvs, one_map, student_layers) for kvs, one_map in pairs]
    return [_combined(teacher_kvs, layer_map.get(student, ()), student) for student in range(student_layers)]


def _combined(teacher_kvs: Sequence[Any], sources: Sequence[tuple[int, float]], student: int) -> Any:
    if not sources:
        raise ValueError(f"layer_map has no teacher layer for student layer {student}")
    missing = [layer for layer, _ in sources if not 0 <= layer < len(teacher_kvs)]
    if missing:
        raise ValueError(f"student layer {student} reads teacher layers {missing}, but there are {len(teacher_kvs)}")
    if isinstance(teacher_kvs[0], tuple | list):
        return tuple(sum(teacher_kvs[layer][kind] * weight for layer, weight in sources) for kind in range(2))
    return sum(teacher_kvs[layer] * weight for layer, weight in sources)
