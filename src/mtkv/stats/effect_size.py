"""Effect sizes known from other papers: paired t over seeds and Cohen's d. No verdict rests on them.

Both look at the seeds' means only: they know nothing of items, and with three seeds next to nothing of seeds.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from mtkv.stats.intervals import Estimate
from mtkv.stats.items import Answers
from mtkv.stats.variance import sample_variance

NAN = float("nan")


@dataclass(frozen=True)
class Classic:
    """`t_seeds` and its two-sided `p_seeds`; `cohens_d` is Δ over the pooled standard deviation of both arms' seeds."""

    t_seeds: float
    p_seeds: float
    cohens_d: float


def classic(answers: Answers, arm: str, baseline: str, column: str, found: Estimate) -> Classic:
    """The t test pairs seeds where both arms have the same, else it is Welch's; NaN with one seed or no variation.

    An arm with one seed is a fixed number, as in `intervals.seed_sources`.
    """
    t, p = seeds_test(found)
    return Classic(t, p, cohens_d(answers, arm, baseline, column, found.value))


def seeds_test(found: Estimate) -> tuple[float, float]:
    """t and two-sided p of a difference, from the means of its seeds alone."""
    variances = [sample_variance(means) / means.size for means in found.seed_means]
    error = float(np.sqrt(sum(variances)))
    if error < 1e-12:
        return NAN, NAN
    degrees = [means.size - 1 for means in found.seed_means]
    df = sum(variances) ** 2 / sum(v**2 / d for v, d in zip(variances, degrees, strict=True))
    t = found.value / error
    return t, float(2 * stats.t.sf(abs(t), df))


def cohens_d(answers: Answers, arm: str, baseline: str, column: str, delta: float) -> float:
    """Δ / sqrt(mean of both variances over seeds); NaN when an arm has one seed or nothing varies."""
    sides = [
        np.mean([answers.matrix(side, dataset).mean(axis=1) for dataset in answers.strata(column)], axis=0)
        for side in (arm, baseline)
    ]
    pooled = float(np.sqrt(np.mean([sample_variance(side) for side in sides])))
    return delta / pooled if min(side.size for side in sides) > 1 and pooled > 1e-12 else NAN
