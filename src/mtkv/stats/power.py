"""What a comparison could have seen (smallest detectable difference), and whether two arms are equal enough (TOST)."""

from functools import lru_cache

import numpy as np
from scipy import optimize, stats
from scipy.special import nctdtr

from mtkv.stats.intervals import Estimate

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
