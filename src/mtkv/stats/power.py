"""What a comparison could have seen (smallest detectable difference), and whether two arms are equal enough (TOST).

Also the effect sizes known from other papers, paired t over seeds and Cohen's d (`classic`). No verdict rests on them: both look at the
seeds' means only, and know nothing of items, and with three seeds next to nothing of seeds.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, stats
from scipy.special import nctdtr

from mtkv.stats.intervals import Estimate, sample_variance, satterthwaite
from mtkv.stats.items import Answers

POWER = 0.8


def smallest_detectable(found: Estimate, confidence: float) -> float:
    """The true difference (0..1) that a study like this one finds 80 % of the time.

    The standard error times the noncentrality at which a two-sided t test has that power, as statsmodels' TTestPower.
    """
    return noncentrality(round(found.df, 6), confidence) * found.se


def widening(found: Estimate, confidence: float) -> float:
    """How much wider the interval of a two-level difference is than Student's with its se and df; at least 1.

    The sum of two levels with few degrees of freedom is not quite Student's, so the detectable difference grows by this factor.
    """
    if found.method == "bca":
        return 1.0
    return max(1.0, (found.high - found.low) / (2 * found.se * float(stats.t.ppf((1 + confidence) / 2, found.df))))


@lru_cache(maxsize=65536)
def noncentrality(df: float, confidence: float) -> float:
    """Noncentrality of Student's t at which it is beyond its two-sided critical values with probability `POWER`."""
    critical = stats.t.ppf((1 + confidence) / 2, df)

    def shortfall(shift: float) -> float:
        other_side = np.nan_to_num(nctdtr(df, shift, -critical))  # NaN where it is too small to compute
        return float(1 - nctdtr(df, shift, critical) + other_side) - POWER

    guess = critical + stats.t.ppf(POWER, df)
    return float(optimize.brentq(shortfall, 0.8 * guess, 1.5 * guess, xtol=1e-9))


def equivalence_p(found: Estimate, margin: float) -> float:
    """p of two one-sided t tests (TOST; Schuirmann 1987) that the difference lies inside ± `margin` (0..1)."""
    return float(stats.t.sf((margin - abs(found.value)) / found.se, found.df))


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
    variances = [float(sample_variance(means)) / means.size for means in found.seed_means]
    error = float(np.sqrt(sum(variances)))
    if error < 1e-12:
        return NAN, NAN
    df = satterthwaite(variances, [means.size - 1 for means in found.seed_means])
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
