"""The difference of two arms that answered the same items: estimate, interval, p value, smallest detectable difference.

In: two arms of `Answers` and a threshold (0: are they different?). Out: a `Difference`. Its p value is two-sided and asks
about items (exact McNemar test when both arms have one seed; otherwise random flips of the signs of the per-item mean
differences, stratified by dataset, all items of a cluster at once) *and*, where there are several seeds, about seeds: the
two-level distribution of `intervals` must be beyond the threshold too, and the larger of the two p values counts. With three
seeds that second p has two degrees of freedom: it is 0.01 at ten standard errors of the seed means, and more seeds, not more
items, make it smaller.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.contingency_tables import mcnemar

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.intervals import Estimate, Estimates, estimate
from mtkv.stats.items import MACRO, Answers
from mtkv.stats.multiplicity import holm
from mtkv.stats.power import smallest_detectable, widening
from mtkv.stats.translatable import both, no_result

__all__ = ["Difference", "difference", "exact_mcnemar", "holm", "smallest_detectable", "two_level_p"]


@dataclass(frozen=True)
class Difference:
    """arm − baseline in one column, in 0..1. `p_items` (items only) and `p` (seeds too) test against its threshold."""

    estimate: Estimate
    p_items: float
    p: float
    mdd: float


def difference(
    answers: Answers,
    resamples: Resamples,
    arm: str,
    baseline: str,
    column: str,
    confidence: float,
    threshold: float = 0.0,
) -> Difference | str:
    """The difference in a column (a dataset or "macro"), or the reason why there is none. `threshold` in 0..1."""
    gaps = [no_result(side, gap) for side in (arm, baseline) if (gap := answers.missing(side, column))]
    if gaps:
        return both(gaps)
    found = estimate(answers, resamples, arm, column, confidence, baseline)
    p_items = _items_p(answers, resamples, arm, baseline, column, threshold)
    # Flipped signs of differences that do not vary know nothing of a threshold other than 0.
    sure = found.n_seeds == 1 and not (found.unvaried and threshold)
    p = p_items if sure else max(p_items, float(two_level_p(found, threshold)))
    mdd = smallest_detectable(found.safe, confidence) * widening(found.safe, confidence)
    return Difference(found, p_items, p, mdd)


def two_level_p(found: Estimate | Estimates, threshold: float) -> NDArray[np.float64]:
    """Two-sided p: twice the share of the two-level draws on the other side of `threshold`; [means] for `Estimates`."""
    tail = np.minimum((found.draws <= threshold).sum(axis=-1), (found.draws >= threshold).sum(axis=-1))
    return np.asarray(np.minimum(1.0, 2.0 * (tail + 1) / (found.draws.shape[-1] + 1)))


def exact_mcnemar(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Exact McNemar p value of two 0/1 vectors over the same items."""
    table = [[((ours == i) & (theirs == j)).sum() for j in (1, 0)] for i in (1, 0)]
    return float(mcnemar(table, exact=True).pvalue)


def _items_p(answers: Answers, resamples: Resamples, arm: str, baseline: str, column: str, threshold: float) -> float:
    """p value that considers only items: exact McNemar where it applies, else the sign-flip permutation test."""
    one_seed = len(answers.seeds[arm]) == len(answers.seeds[baseline]) == 1
    if one_seed and column != MACRO and threshold == 0 and answers.groups(column) is None:
        ours, theirs = (answers.matrix(side, column)[0] for side in (arm, baseline))
        if np.isin([ours, theirs], (0.0, 1.0)).all():
            return exact_mcnemar(ours, theirs)
    strata = answers.strata(column)
    flips = np.mean(
        [resamples.flips[d][arm] - resamples.flips[d][baseline] - threshold * resamples.flip_means[d] for d in strata],
        axis=0,
    )
    means = [answers.matrix(arm, d).mean() - answers.matrix(baseline, d).mean() - threshold for d in strata]
    # Flips that tie with what was observed must count as ties, whatever the order of the summation rounded.
    as_extreme = np.abs(flips) >= abs(np.mean(means)) - 1e-9
    return float(as_extreme.sum() + 1) / (flips.size + 1)
