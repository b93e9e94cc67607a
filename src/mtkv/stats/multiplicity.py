"""Adjustments of p values for having looked more than once."""

import numpy as np
from numpy.typing import NDArray


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm-adjusted p values of one family; a NaN (nothing tested) stays NaN and is not counted."""
    # Written out: statsmodels' multipletests (which a test compares this with) collects garbage for 0.1 s in every call.
    adjusted = np.full(p_values.shape, np.nan)
    order = np.argsort(p_values, kind="stable")[: int((~np.isnan(p_values)).sum())]
    steps = p_values[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def partial_conjunction(p_values: NDArray[np.float64], at_least: int) -> float:
    """p of "at least so many of these hypotheses are false": (n − k + 1)·p₍ₖ₎, k = `at_least` (Benjamini & Heller 2008).

    Valid whatever their dependence; 1 when there are fewer than k.
    """
    if at_least > p_values.size:
        return 1.0
    return min(1.0, (p_values.size - at_least + 1) * float(np.sort(p_values)[at_least - 1]))
