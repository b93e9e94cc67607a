"""Match the tokens of two tokenizations of one text.

In: the byte ends of student and teacher tokens. Out: for each student token the teacher token that ends at the same byte
(method.md §2, synchronised boundaries): a teacher token that ends later has already read text the student has not.
"""

import numpy as np
from jaxtyping import Int

NO_TOKEN = -1


def synchronised_tokens(
    student_end: Int[np.ndarray, " student_time"], teacher_end: Int[np.ndarray, " teacher_time"]
) -> Int[np.ndarray, " student_time"]:
    """Index of the teacher token that ends at the same byte as each student token, or −1 where there is none.

    Byte ends of −1 (special tokens, sinks, unfinished characters) never match.
    """
    position = {int(end): index for index, end in enumerate(teacher_end) if end >= 0}
    return np.array([position.get(int(end), NO_TOKEN) if end >= 0 else NO_TOKEN for end in student_end], dtype=np.int64)


def coverage(student_end: Int[np.ndarray, " student_time"], matched: Int[np.ndarray, " student_time"]) -> float:
    """Share of the student's comparable tokens that found a teacher token; NaN for a row without any."""
    comparable = student_end >= 0
    return float((matched[comparable] >= 0).mean()) if comparable.any() else float("nan")
