"""Every arm against every other: the matrix of wins, ties and losses, tied sets instead of a winner, intervals of ranks.

In: `Answers`. Out: the rows of matrix.parquet, and for each contender in a column its `Place`. The *tied set* are the best
arm and those whose difference from it has an interval that covers 0. The rank of an arm is 1 + the number of better ones;
its interval counts only the rivals that are better, or worse, for sure: Holm's adjustment over the rivals of that arm, the
bootstrap's p values (Mogstad, Romano, Shaikh & Wilhelm 2024). Bootstrapping ranks themselves is wrong where arms tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mtkv.stats.answers import Answers
from mtkv.stats.intervals import Estimate, estimate
from mtkv.stats.multiplicity import holm
from mtkv.stats.paired import two_level_p
from mtkv.stats.resampling import Resamples

COLUMNS = ["arm", "other", "dataset", "delta", "low", "high", "p", "p_holm", "n_items", "n_seeds", "outcome"]
NAN = float("nan")


@dataclass(frozen=True)
class Place:
    """Where an arm stands among the contenders of a column; NaN for an arm that is none, or has no number there."""

    rank: float = NAN
    low: float = NAN
    high: float = NAN
    tied: bool = False


Duels = dict[tuple[str, str], tuple[Estimate, float]]


def duels(answers: Answers, resamples: Resamples, column: str, confidence: float, arms: Sequence[str]) -> Duels:
    """(arm, other) → difference (without its draws) and p, for each unordered pair of arms with a number in the column."""
    present = [arm for arm in arms if answers.missing(arm, column) is None]
    pairs = [(one, other) for i, one in enumerate(present) for other in present[i + 1 :]]
    found: Duels = {}
    for arm, other in pairs:
        one = estimate(answers, resamples, arm, column, confidence, other)
        found[arm, other] = replace(one, draws=one.draws[:0]), two_level_p(one, 0.0)
    return found


def places(
    answers: Answers, column: str, fought: Duels, confidence: float, contenders: Sequence[str]
) -> dict[str, Place]:
    """The place of every contender that has a number in the column. `fought` may hold further arms."""
    means = _means(answers, column, contenders)
    tied = _tied(means, fought)
    found = {}
    for arm in means:
        rivals = [other for other in means if other != arm]
        signed = [fought[arm, other] if (arm, other) in fought else fought[other, arm] for other in rivals]
        sides = [1 if (arm, other) in fought else -1 for other in rivals]
        sure = holm(np.array([p for _, p in signed])) < 1 - confidence
        ahead = np.array([side * one.value for side, (one, _) in zip(sides, signed, strict=True)])
        better, worse = int((sure & (ahead < 0)).sum()), int((sure & (ahead > 0)).sum())
        rank = 1 + sum(means[other] > means[arm] + 1e-12 for other in rivals)
        found[arm] = Place(float(rank), 1.0 + better, float(len(means) - worse), arm in tied)
    return found


def tied_set(
    answers: Answers, resamples: Resamples, column: str, confidence: float, contenders: Sequence[str]
) -> set[str]:
    """The best contender of a column and those whose difference from it has an interval that covers 0."""
    return _tied(_means(answers, column, contenders), duels(answers, resamples, column, confidence, contenders))


def matrix_rows(column: str, fought: Duels, confidence: float) -> list[dict[str, object]]:
    """Rows of matrix.parquet for one column, each pair in both directions; Holm's family is the column."""
    adjusted = holm(np.array([p for _, p in fought.values()]))
    rows: list[dict[str, object]] = []
    for ((arm, other), (found, p)), p_holm in zip(fought.items(), adjusted, strict=True):
        for side, names in ((1, (arm, other)), (-1, (other, arm))):
            low, high = sorted((side * found.low, side * found.high))
            outcome = "tie" if not p_holm < 1 - confidence else "win" if side * found.value > 0 else "loss"
            numbers = [side * found.value + 0.0, low, high, p, p_holm, found.n_items, found.n_seeds, outcome]
            rows.append(dict(zip(COLUMNS, [*names, column, *numbers], strict=True)))
    return rows


def matrix_table(rows: list[dict[str, object]]) -> pd.DataFrame:
    """matrix.parquet, in 0..1."""
    return pd.DataFrame(rows, columns=COLUMNS).astype(
        dict.fromkeys(["delta", "low", "high", "p", "p_holm"], float) | dict.fromkeys(["n_items", "n_seeds"], int)
    )


def _means(answers: Answers, column: str, arms: Sequence[str]) -> dict[str, float]:
    strata = answers.strata(column)
    present = [arm for arm in arms if answers.missing(arm, column) is None]
    return {arm: float(np.mean([answers.matrix(arm, dataset).mean() for dataset in strata])) for arm in present}


def _tied(means: dict[str, float], fought: Duels) -> set[str]:
    if not means:
        return set()
    best = max(means, key=means.__getitem__)
    versus = {arm: fought.get((best, arm)) or fought[arm, best] for arm in means if arm != best}
    return {best} | {arm for arm, (found, _) in versus.items() if found.low <= 0 <= found.high}
