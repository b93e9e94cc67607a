"""The word for a paired difference, the same in every figure and table: better, worse, equivalent, undecided or missing.

In: a row of pairs.parquet. Out: its `outcome`, and for an undecided one the smallest difference that the study would have seen
four times out of five, so that "not significant" is never read as "no difference".
"""

from typing import Any

from mtkv.report.figures.figure import number, percent, text
from mtkv.report.strings import say

DECIDED = ("better", "worse", "equivalent")


def outcome(pair: dict[str, Any] | None, alpha: float) -> str:
    """The word; rows from before the column `outcome` existed are judged by their p value and interval."""
    if pair is None or number(pair.get("delta")) is None:
        return "missing"
    if isinstance(known := pair.get("outcome"), str):
        return known
    p, low, high = (number(pair.get(name)) for name in ("p_holm", "low", "high"))
    if p is None or low is None or high is None or not p < alpha or low <= 0 <= high:
        return "undecided"
    return "better" if low > 0 else "worse"


def clear(pair: dict[str, Any] | None, alpha: float) -> bool:
    """Whether the arm is better or worse, beyond doubt."""
    return outcome(pair, alpha) in ("better", "worse")


def verdict(pair: dict[str, Any] | None, alpha: float) -> str:
    """The word; for `undecided` with the smallest detectable difference: `undecided, sees ≥ 3.4` (points)."""
    word = outcome(pair, alpha)
    seen = detectable(pair)
    return say("{word}, sees ≥ {points}", word=word, points=seen) if word == "undecided" and seen != "—" else word


def detectable(pair: dict[str, Any] | None) -> str:
    """The smallest detectable difference in points."""
    return text(percent((pair or {}).get("mdd")))
