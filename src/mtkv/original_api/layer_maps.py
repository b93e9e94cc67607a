"""Layer maps of several teachers under the names of the original design: `{student layer: [(teacher layer, weight), …]}`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtkv.align.layers import layer_weights

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
