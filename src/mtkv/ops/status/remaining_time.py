"""How long the rest takes: running jobs by their own rate, the others by the mean of the finished jobs of their rule.

With w seconds of work left, n jobs at once and the longest chain of c seconds (the longest job left of each rule, one after another),
the rest takes at least max(w / n, c) (Graham's bounds of list scheduling). Waiting in SLURM's queue is not foreseen;
scoring, which has no card, counts as no time.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import mean

from mtkv.ops.status.states import Status


@dataclass(frozen=True)
class RemainingTime:
    """Seconds left (None: unknown), jobs at once it assumes, and rules without a finished job, whose jobs are not counted."""

    seconds: float | None
    at_once: int
    unknown: tuple[str, ...]


def estimate(folder: Path, statuses: list[Status], at_once: int | None = None) -> RemainingTime:
    """The time left. `at_once`: how many jobs run side by side; None for as many as are running now."""
    left = [status for status in statuses if status.state != "done" and status.job.card]
    means = durations(folder, statuses, {status.job.rule for status in left})
    at_once = max(1, at_once or sum(status.state == "running" for status in left))
    work: dict[str, float] = defaultdict(float)
    longest: dict[str, float] = {}
    unknown: dict[str, None] = {}
    for status in left:
        rule, seconds = status.job.rule, remaining(status, means)
        if seconds is None:
            unknown[rule] = None
        else:
            work[rule] += seconds
            longest[rule] = max(longest.get(rule, 0.0), seconds)
    total = max(sum(work.values()) / at_once, sum(longest.values()))
    return RemainingTime(total if longest or not left else None, at_once, tuple(unknown))


def remaining(status: Status, means: dict[str, float]) -> float | None:
    """Seconds a job still takes; None where nothing tells. `means`: rule → mean seconds."""
    progress, usual = status.progress, means.get(status.job.rule)
    if progress and status.state == "running" and progress.rate:
        return max(0.0, (progress.total - progress.done) / progress.rate)
    if usual is None:
        return None
    if progress and progress.total:
        return usual * max(0.0, 1 - progress.done / progress.total)
    return max(0.0, usual - (status.elapsed or 0.0))


def durations(folder: Path, statuses: Iterable[Status], rules: set[str]) -> dict[str, float]:
    """Mean wall time in seconds of the finished jobs of each of `rules`, from their cards."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for status in statuses:
        if status.job.card and status.job.rule in rules and status.state == "done":
            card = folder / status.job.card
            try:
                seconds[status.job.rule].append(_wall_seconds(card, card.stat().st_mtime_ns))
            except (OSError, ValueError, KeyError, TypeError):  # unreadable, or written by another version
                continue
    return {rule: mean(found) for rule, found in seconds.items()}


@lru_cache(maxsize=4096)
def _wall_seconds(card: Path, modified: int) -> float:
    return float(json.loads(card.read_text(encoding="utf-8"))["wall_seconds"])
