"""Every arm against every other: the matrix of wins, ties and losses, tied sets instead of a winner, intervals of ranks.

In: `Answers`. Out: the rows of matrix.parquet, and for each contender in a column its `Rank`. The *tied set* are the best
arm and those whose difference from it has an interval that covers 0. The rank of an arm is 1 + the number of better ones;
its interval counts only the rivals that are better, or worse, for sure: Holm's adjustment over the rivals of that arm, the
bootstrap's p values (Mogstad, Romano, Shaikh & Wilhelm 2024). Bootstrapping ranks themselves is wrong where arms tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.intervals import estimates
from mtkv.stats.items import Answers
from mtkv.stats.multiplicity import holm
from mtkv.stats.paired_tests import two_level_p

COLUMNS = ["arm", "other", "dataset", "delta", "low", "high", "p", "p_holm", "n_items", "n_seeds", "outcome"]
NAN = float("nan")
CHUNK = 32  # pairs at a time; each needs 8 bytes per resample several times
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Rank:
    """Where an arm stands among the contenders of a column; NaN for an arm that is none, or has no number there."""

    rank: float = NAN
    low: float = NAN
    high: float = NAN
    tied: bool = False


@dataclass(frozen=True)
class Duels:
    """Every arm with a number in a column against every other: arrays [arms, arms] of the row's arm minus the column's.

    `p` is the bootstrap's, two-sided; the diagonals mean nothing.
    """

    arms: list[str]
    value: Numbers
    low: Numbers
    high: Numbers
    p: Numbers
    n_seeds: Numbers
    n_items: int

    def of(self, arms: Sequence[str]) -> "Duels":
        """The duels among `arms` only."""
        kept = [place for place, arm in enumerate(self.arms) if arm in arms]
        parts = {name: getattr(self, name)[np.ix_(kept, kept)] for name in ("value", "low", "high", "p", "n_seeds")}
        return Duels([self.arms[place] for place in kept], **parts, n_items=self.n_items)


def duels(answers: Answers, resamples: Resamples, column: str, confidence: float, arms: Sequence[str]) -> Duels:
    """Every pair of `arms` with a number in the column, from one set of resamples per arm, `CHUNK` pairs at a time."""
    present = [arm for arm in arms if answers.missing(arm, column) is None]
    value, low, high, p, seeds = np.zeros((5, len(present), len(present)))
    items = 0
    for row, arm in enumerate(present):
        alike: dict[tuple[int, ...], list[int]] = {}
        for place in range(row + 1, len(present)):
            alike.setdefault(tuple(answers.seeds[present[place]]), []).append(place)
        chunks = [places[start : start + CHUNK] for places in alike.values() for start in range(0, len(places), CHUNK)]
        for chunk in chunks:
            found = estimates(answers, resamples, arm, column, confidence, [present[place] for place in chunk])
            value[row, chunk], low[row, chunk], high[row, chunk] = found.value, found.low, found.high
            value[chunk, row], low[chunk, row], high[chunk, row] = -found.value, -found.high, -found.low
            p[row, chunk] = p[chunk, row] = two_level_p(found, 0.0)
            seeds[row, chunk] = seeds[chunk, row] = found.n_seeds
            items = sum(shares.shape[-1] for shares in found.per_item)
    return Duels(present, value, low, high, p, seeds, items)


def places(
    answers: Answers, column: str, fought: Duels, confidence: float, contenders: Sequence[str]
) -> dict[str, Rank]:
    """Arm → its rank among the `contenders` that have a number in the column. `fought` may hold further arms, which do not count."""
    among = fought.of(contenders)
    means = _means(answers, column, among.arms)
    tied = _tied(means, among)
    found = {}
    for place, arm in enumerate(among.arms):
        rivals = np.arange(len(among.arms)) != place
        sure = holm(among.p[place, rivals]) < 1 - confidence
        ahead = among.value[place, rivals]
        better, worse = int((sure & (ahead < 0)).sum()), int((sure & (ahead > 0)).sum())
        rank = 1 + sum(mean > means[arm] + 1e-12 for mean in means.values())
        found[arm] = Rank(float(rank), 1.0 + better, float(len(means) - worse), arm in tied)
    return found


def tied_set(
    answers: Answers, resamples: Resamples, column: str, confidence: float, contenders: Sequence[str]
) -> set[str]:
    """The best contender of a column and those whose difference from it has an interval that covers 0."""
    fought = duels(answers, resamples, column, confidence, contenders)
    return _tied(_means(answers, column, fought.arms), fought)


def matrix_table(
    column: str, fought: Duels, confidence: float, arms: Sequence[str], columns: Sequence[str]
) -> pd.DataFrame:
    """The rows of matrix.parquet for one of `columns`, in 0..1, each pair in both directions; Holm's family is all pairs of the column."""
    one, other = np.triu_indices(len(fought.arms), 1)
    rows, others = (np.stack(both, axis=1).ravel() for both in ((one, other), (other, one)))
    delta, p = fought.value[rows, others] + 0.0, fought.p[rows, others]
    p_holm = np.repeat(holm(fought.p[one, other]), 2)
    outcome = np.where(p_holm < 1 - confidence, np.where(delta > 0, 0, 2), 1)
    codes = np.array([list(arms).index(arm) for arm in fought.arms], dtype=int)
    table = {
        "arm": pd.Categorical.from_codes(codes[rows], pd.Index(arms)),
        "other": pd.Categorical.from_codes(codes[others], pd.Index(arms)),
        "dataset": pd.Categorical.from_codes(np.full(rows.size, list(columns).index(column)), pd.Index(columns)),
        "delta": delta,
        "low": fought.low[rows, others],
        "high": fought.high[rows, others],
        "p": p,
        "p_holm": p_holm,
        "n_items": np.full(rows.size, fought.n_items),
        "n_seeds": fought.n_seeds[rows, others].astype(int),
        "outcome": pd.Categorical.from_codes(outcome, pd.Index(["win", "tie", "loss"])),
    }
    return pd.DataFrame(table, columns=COLUMNS)


def _means(answers: Answers, column: str, arms: Sequence[str]) -> dict[str, float]:
    strata = answers.strata(column)
    return {arm: float(np.mean([answers.matrix(arm, dataset).mean() for dataset in strata])) for arm in arms}


def _tied(means: dict[str, float], fought: Duels) -> set[str]:
    """The best arm and those tied with it. `means`: arm → accuracy, in the order of `fought.arms`."""
    if not means:
        return set()
    best = fought.arms.index(max(means, key=means.__getitem__))
    covers = (fought.low[best] <= 0) & (fought.high[best] >= 0)
    return {arm for place, arm in enumerate(fought.arms) if covers[place]}  # the best itself has the interval 0..0
