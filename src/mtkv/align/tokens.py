"""Match the tokens of two tokenizations of one text.

In: the byte ends of student and teacher tokens. Out: for each student token the teacher token that ends at the same byte
(method.md §2, synchronised boundaries): a teacher token that ends later has already read text the student has not.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

NO_TOKEN = -1


@dataclass(frozen=True)
class Spans:
    """UTF-8 bytes of the text that each token covers, `[start, end)`; −1 in both for what may not be compared."""

    start: Int[np.ndarray, " time"]
    end: Int[np.ndarray, " time"]

    def comparable(self) -> Int[np.ndarray, " tokens"]:
        """Indices of the tokens that have a span, ascending."""
        return np.flatnonzero(self.end >= 0)


def synchronised_tokens(
    student_end: Int[np.ndarray, " student_time"], teacher_end: Int[np.ndarray, " teacher_time"]
) -> Int[np.ndarray, " student_time"]:
    """Index of the teacher token that ends at the same byte as each student token, or −1 where there is none.

    Byte ends of −1 (special tokens, sinks, unfinished characters) never match.
    """
    comparable = np.flatnonzero(teacher_end >= 0)
    if not len(comparable):
        return np.full(len(student_end), NO_TOKEN, dtype=np.int64)
    by_end = comparable[np.argsort(teacher_end[comparable], kind="stable")]
    last_not_later = np.searchsorted(teacher_end[by_end], student_end, side="right") - 1
    found = by_end[np.maximum(last_not_later, 0)]
    return np.where((student_end >= 0) & (teacher_end[found] == student_end), found, NO_TOKEN)


def coverage(student_end: Int[np.ndarray, " student_time"], matched: Int[np.ndarray, " student_time"]) -> float:
    """Share of the student's comparable tokens that found a teacher token; NaN for a row without any."""
    comparable = student_end >= 0
    return float((matched[comparable] >= 0).mean()) if comparable.any() else float("nan")
