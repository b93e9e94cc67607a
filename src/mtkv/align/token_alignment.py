"""Which teacher tokens each student token is compared with, and with what weight (method.md §2).

In: the byte spans of both tokenizations of one row. Out: a `TimeMatch`, a sparse alignment matrix with one row per supervised student
token, whose weights are ≥ 0 and sum to 1; student tokens without a target have no row. One function per method in a registry.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from mtkv.align.byte_spans import Spans, synchronised_tokens
from mtkv.models.tokenization import EncodedRow

Segments = Sequence[int] | None


class TeacherSpans(Protocol):
    """What gives the byte spans of a teacher's tokens by row id, `[time]`, −1 where not comparable: a store or an online teacher."""

    def byte_start(self, row: str) -> np.ndarray: ...

    def byte_end(self, row: str) -> np.ndarray: ...


@dataclass(frozen=True)
class TimeMatch:
    """For each supervised student token the teacher tokens it is compared with.

    `position [n]`: student tokens that have a target, ascending. `tokens [n, k]`: teacher tokens, 0 where the weight is 0.
    `weight [n, k]`: rows sum to 1. For example, position [3], tokens [[4, 5]], weight [[0.25, 0.75]]: the target of student token 3 is
    0.25·teacher[4] + 0.75·teacher[5].
    """

    position: Int[np.ndarray, " n"]
    tokens: Int[np.ndarray, "n k"]
    weight: Float[np.ndarray, "n k"]


def match_time(method: str, student: Spans, teacher: Spans, segments: Segments = None) -> TimeMatch:
    """Match one row. `segments`: ascending byte ends of all segments but the last, (prompt_end, reasoning_end); read by
    `resample` only. Raises ValueError for an unknown method, unordered spans or unordered segments."""
    if method not in MATCH_METHODS:
        raise ValueError(f"time: {method!r} is not one of {', '.join(MATCH_METHODS)}")
    return MATCH_METHODS[method](student, teacher, segments)


def match_row(
    method: str, row: str, encoded: EncodedRow, teacher: TeacherSpans, segments: Segments = None
) -> TimeMatch:
    """`match_time` for the row with id `row`: `encoded` is the student's tokenization, the teacher's spans come from `teacher`."""
    theirs = Spans(teacher.byte_start(row), teacher.byte_end(row))
    return match_time(method, Spans(encoded.byte_start, encoded.byte_end), theirs, segments)


def look_ahead(student: Spans, teacher: Spans, match: TimeMatch) -> float:
    """Share of the supervised tokens whose target has read text after the student token's end; NaN without any."""
    if not len(match.position):
        return float("nan")
    read_until = np.where(match.weight > 0, teacher.end[match.tokens], -1).max(axis=1)
    return float((read_until > student.end[match.position]).mean())


def sync(student: Spans, teacher: Spans, segments: Segments) -> TimeMatch:
    """The teacher token that ends at the same byte: it has read exactly the same text."""
    matched = synchronised_tokens(student.end, teacher.end)
    position = np.flatnonzero(matched >= 0)
    return _one_to_one(position, matched[position])


def truncate(student: Spans, teacher: Spans, segments: Segments) -> TimeMatch:
    """The i-th comparable teacher token for the i-th comparable student token; the rest of the longer side has no partner."""
    mine, theirs = student.comparable(), teacher.comparable()
    shorter = min(len(mine), len(theirs))
    return _one_to_one(mine[:shorter], theirs[:shorter])


def overlap(student: Spans, teacher: Spans, segments: Segments) -> TimeMatch:
    """Every teacher token it shares bytes with, weighted by shared bytes ÷ student span, renormalised over the comparable ones."""
    position, tokens, shared = _shared_bytes(student, teacher)
    return _convex(position, tokens, shared.astype(np.float64))


def iou(student: Spans, teacher: Spans, segments: Segments) -> TimeMatch:
    """Every teacher token it shares bytes with, weighted by shared bytes ÷ bytes of the union, normalised per row."""
    position, tokens, shared = _shared_bytes(student, teacher)
    union = (student.end - student.start)[position][:, None] + (teacher.end - teacher.start)[tokens] - shared
    return _convex(position, tokens, shared / np.maximum(union, 1))


def resample(student: Spans, teacher: Spans, segments: Segments) -> TimeMatch:
    """Linear interpolation at u_i = i·(T_t−1)/(T_s−1), within each segment; a token belongs to the segment that its end lies in.

    A student segment of one token reads the teacher's last; a segment without teacher tokens has no target.
    """
    bounds = np.asarray(segments if segments is not None else [], dtype=np.int64)
    if (np.diff(bounds) < 0).any():
        raise ValueError(f"segments must ascend, got {bounds.tolist()}")
    mine, theirs = student.comparable(), teacher.comparable()
    my_segment, their_segment = (np.searchsorted(bounds, x) for x in (student.end[mine], teacher.end[theirs]))
    parts = [_stretch(mine[my_segment == s], theirs[their_segment == s]) for s in range(len(bounds) + 1)]
    position, tokens, weight = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _convex(position, tokens, weight)


MATCH_METHODS: dict[str, Callable[[Spans, Spans, Segments], TimeMatch]] = {
    "sync": sync,
    "overlap": overlap,
    "iou": iou,
    "resample": resample,
    "truncate": truncate,
}


def _stretch(mine: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not len(mine) or not len(theirs):
        return np.zeros(0, np.int64), np.zeros((0, 2), np.int64), np.zeros((0, 2))
    steps, last = max(len(mine) - 1, 1), len(theirs) - 1
    numerator = np.arange(len(mine)) * last if len(mine) > 1 else np.array([last])
    lower, rest = np.divmod(numerator, steps)
    upper = np.minimum(lower + 1, last)
    return mine, theirs[np.stack([lower, upper], axis=1)], np.stack([1 - rest / steps, rest / steps], axis=1)


def _shared_bytes(student: Spans, teacher: Spans) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Comparable student tokens [m], the teacher tokens around each [m, k] and the bytes they share [m, k]."""
    mine, theirs = student.comparable(), teacher.comparable()
    start, end = teacher.start[theirs], teacher.end[theirs]
    my_start, my_end = student.start[mine], student.end[mine]
    if any((np.diff(edge) < 0).any() for edge in (start, end, my_start, my_end)):
        raise ValueError("overlap and iou need spans in the order of the text")
    if not len(mine) or not len(theirs):
        return mine[:0], np.zeros((0, 1), np.int64), np.zeros((0, 1), np.int64)
    first, stop = np.searchsorted(end, my_start, side="right"), np.searchsorted(start, my_end, side="left")
    column = first[:, None] + np.arange(max(int((stop - first).max()), 1))
    inside = column < stop[:, None]
    column = np.where(inside, column, 0)
    shared = np.minimum(end[column], my_end[:, None]) - np.maximum(start[column], my_start[:, None])
    return mine, theirs[column], np.where(inside, shared, 0)


def _convex(position: np.ndarray, tokens: np.ndarray, raw: np.ndarray) -> TimeMatch:
    total = raw.sum(axis=1)
    kept = total > 0
    weight = (raw[kept] / total[kept, None]).astype(np.float32)
    return TimeMatch(position[kept], np.where(weight > 0, tokens[kept], 0), weight)


def _one_to_one(position: np.ndarray, tokens: np.ndarray) -> TimeMatch:
    return TimeMatch(position, tokens[:, None], np.ones((len(position), 1), dtype=np.float32))
