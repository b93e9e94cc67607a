"""Which teacher layers each student layer learns from (method.md §3).

One function per strategy in a registry: either one teacher layer per student layer, or weights over several. Every student layer
has a target for any two layer counts, and the last student layer always reads the last teacher layer. `origin` alone is no function of
the counts: a student that was cut from the teacher has the very layers as targets that it was made of.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

SMALLEST_SIMILARITY = 1e-6


def ratio(teacher_layers: int, student_layers: int) -> list[int]:
    """round(i·(L_t−1)/(L_s−1)): first reads first, last reads last. A student of one layer reads the last teacher layer."""
    if student_layers == 1:
        return [teacher_layers - 1]
    return [_round_half_up(i * (teacher_layers - 1), student_layers - 1) for i in range(student_layers)]


def uniform(teacher_layers: int, student_layers: int) -> list[int]:
    """The last layer of each of L_s equal chunks of the teacher: ⌈(i+1)·L_t/L_s⌉ − 1."""
    return [-(-(i + 1) * teacher_layers // student_layers) - 1 for i in range(student_layers)]


def skip(teacher_layers: int, student_layers: int) -> list[int]:
    """Every ⌊L_t/L_s⌋-th layer, counted down from the last; what would lie below the first layer reads the first."""
    return _downwards(teacher_layers, student_layers, max(1, teacher_layers // student_layers))


def last_aligned(teacher_layers: int, student_layers: int) -> list[int]:
    """The top L_s teacher layers, one to one; student layers below the teacher's first read the first."""
    return _downwards(teacher_layers, student_layers, 1)


LAYER_STRATEGIES: dict[str, Callable[[int, int], list[int]]] = {
    "ratio": ratio,
    "uniform": uniform,
    "skip": skip,
    "last_aligned": last_aligned,
}

LayerWeights = Float[np.ndarray, "student_layers teacher_layers"]


def interpolate(teacher_layers: int, student_layers: int, similarity: LayerWeights | None, top_k: int) -> LayerWeights:
    """Linear interpolation between the two teacher layers around i·(L_t−1)/(L_s−1)."""
    steps = max(student_layers - 1, 1)
    position = [i * (teacher_layers - 1) for i in range(student_layers)] if student_layers > 1 else [teacher_layers - 1]
    weights = np.zeros((student_layers, teacher_layers))
    for row, (lower, rest) in enumerate(divmod(numerator, steps) for numerator in position):
        weights[row, lower] = 1 - rest / steps
        if rest:
            weights[row, lower + 1] = rest / steps
    return weights


def most_similar(teacher_layers: int, student_layers: int, similarity: LayerWeights | None, top_k: int) -> LayerWeights:
    """The `top_k` most similar teacher layers, weighted by similarity (negative ones count as 0).

    In the last row the last teacher layer takes the place of the weakest of the k where it is not among them.
    Raises ValueError without finite similarities `[student_layers, teacher_layers]`, or for top_k below 1.
    """
    shape = (student_layers, teacher_layers)
    if similarity is None or np.shape(similarity) != shape or not np.isfinite(similarity).all():
        got = None if similarity is None else np.shape(similarity)
        raise ValueError(f"layers: cka needs a finite similarity [student_layers, teacher_layers] = {shape}, got {got}")
    if top_k < 1:
        raise ValueError(f"layers: top_k must be at least 1, got {top_k}")
    strength = np.maximum(np.asarray(similarity, dtype=np.float64), SMALLEST_SIMILARITY)
    chosen = np.argsort(-strength, axis=1, kind="stable")[:, :top_k]
    if teacher_layers - 1 not in chosen[-1]:
        chosen[-1, -1] = teacher_layers - 1
    weights = np.zeros(shape)
    np.put_along_axis(weights, chosen, np.take_along_axis(strength, chosen, axis=1), axis=1)
    return weights / weights.sum(axis=1, keepdims=True)


WEIGHT_STRATEGIES: dict[str, Callable[[int, int, LayerWeights | None, int], LayerWeights]] = {
    "interpolate": interpolate,
    "cka": most_similar,
}
ORIGIN = "origin"  # a student that was cut from the teacher: the layers that it was given
MEASURED = frozenset({"cka"})  # strategies whose layers are known only after the teacher's KV has been measured


def layer_map(strategy: str, teacher_layers: int, student_layers: int) -> list[int]:
    """Teacher layer for each student layer, length `student_layers`. Raises ValueError for strategies that weight several."""
    _check(strategy, teacher_layers, student_layers)
    if strategy not in LAYER_STRATEGIES:
        raise ValueError(f"layers: {strategy} weights several teacher layers; layer_weights gives its matrix")
    return LAYER_STRATEGIES[strategy](teacher_layers, student_layers)


def layer_weights(
    strategy: str,
    teacher_layers: int,
    student_layers: int,
    similarity: LayerWeights | None = None,
    top_k: int = 2,
    origin: Sequence[int] = (),
) -> LayerWeights:
    """Weight of each teacher layer in each student layer's target: float64, ≥ 0, rows sum to 1.

    `similarity` (for instance `cka_similarity` on a calibration set) and `top_k` steer `cka` only; `origin` is the teacher layer that each
    of the student's was, for the strategy of that name, which raises ValueError without one for each.
    """
    _check(strategy, teacher_layers, student_layers)
    if strategy == ORIGIN:
        if len(origin) != student_layers:
            raise ValueError(
                f"layers: origin needs the teacher layers of {student_layers} student layers, got {list(origin)}"
            )
        return np.eye(teacher_layers)[list(origin)]
    if strategy in LAYER_STRATEGIES:
        return np.eye(teacher_layers)[LAYER_STRATEGIES[strategy](teacher_layers, student_layers)]
    return WEIGHT_STRATEGIES[strategy](teacher_layers, student_layers, similarity, top_k)


def stored_layers(
    strategies: Iterable[str], teacher_layers: int, student_layers: int, origin: Sequence[int] = ()
) -> list[int]:
    """Teacher layers that any of the strategies reads, ascending: what the KV store must hold. `cka` may read any; `origin`: see
    `layer_weights`."""
    needed: set[int] = set()
    for name in strategies:
        if name in MEASURED:
            return list(range(teacher_layers))
        weights = layer_weights(name, teacher_layers, student_layers, origin=origin)
        needed |= set(np.flatnonzero(weights.any(axis=0)).tolist())
    return sorted(needed)


def _check(strategy: str, teacher_layers: int, student_layers: int) -> None:
    if teacher_layers < 1 or student_layers < 1:
        raise ValueError(f"layer counts must be at least 1, got {teacher_layers} and {student_layers}")
    known = [*LAYER_STRATEGIES, *WEIGHT_STRATEGIES, ORIGIN]
    if strategy not in known:
        raise ValueError(f"layers: {strategy!r} is not one of {', '.join(known)}")


def _downwards(teacher_layers: int, student_layers: int, stride: int) -> list[int]:
    return [max(0, teacher_layers - 1 - stride * below) for below in reversed(range(student_layers))]


def _round_half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
