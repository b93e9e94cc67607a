"""Which teacher layer each student layer learns from (method.md §3).

One function per strategy, `(teacher_layers, student_layers) -> list`, in a registry; every student layer has a target and
the last teacher layer is always reached.
"""

from collections.abc import Callable, Iterable


def ratio(teacher_layers: int, student_layers: int) -> list[int]:
    """round(i·(L_t−1)/(L_s−1)): both ends kept. A student of one layer learns from the last teacher layer."""
    if student_layers == 1:
        return [teacher_layers - 1]
    return [_round_half_up(i * (teacher_layers - 1), student_layers - 1) for i in range(student_layers)]


LAYER_STRATEGIES: dict[str, Callable[[int, int], list[int]]] = {"ratio": ratio}


def layer_map(strategy: str, teacher_layers: int, student_layers: int) -> list[int]:
    """Teacher layer for each student layer, length `student_layers`."""
    if teacher_layers < 1 or student_layers < 1:
        raise ValueError(f"layer counts must be at least 1, got {teacher_layers} and {student_layers}")
    return LAYER_STRATEGIES[strategy](teacher_layers, student_layers)


def stored_layers(strategies: Iterable[str], teacher_layers: int, student_layers: int) -> list[int]:
    """Teacher layers that any of the strategies maps to a student layer, ascending: what the KV store must hold."""
    return sorted({layer for name in strategies for layer in layer_map(name, teacher_layers, student_layers)})


def _round_half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
