"""The claims as the page shows them: verdict, estimate with its interval, what was needed, p, and why.

In: `claims.parquet`, in percentage points; for `datasets_improved` the estimate and the threshold are numbers of datasets. An undecided
claim has the smallest difference that the study would have seen; a claim with a control twin has the difference from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtkv.report.figure import number, p_text, text
from mtkv.report.results import Results

MARKS = {"supported": "✓", "refuted": "✗", "undecided": "?"}
LEVELS = ("minimum", "ideal", "stretch")


@dataclass(frozen=True)
class ClaimRow:
    """One claim, ready to show."""

    id: str
    statement: str
    detail: str
    level: str
    verdict: str
    mark: str
    estimate: str
    interval: str
    needed: str
    p: str
    n: str
    why: str
    detectable: str = ""
    twin: str = ""


@dataclass(frozen=True)
class Unit:
    """How the numbers of one kind of claim are written."""

    digits: int
    sign: bool
    suffix: str
    relation: str


UNITS = {
    "difference": Unit(1, True, " pts", ">"),
    "reaches": Unit(1, True, " pts", "≥"),
    "accuracy": Unit(1, False, " %", "≥"),
    "datasets_improved": Unit(0, False, " datasets", "≥"),
    "equivalent": Unit(1, True, " pts", "within ±"),
    "differ": Unit(1, True, " pts", "≠"),
}


def claim_rows(results: Results) -> list[ClaimRow]:
    """One row per claim, in the order of claims.parquet (that of the config)."""
    return [_row(claim, len(results.datasets)) for claim in results.claims.to_dict("records")]


def _row(claim: Mapping[Any, Any], datasets: int) -> ClaimRow:
    unit = UNITS.get(claim["kind"], UNITS["difference"])
    low, high = (text(claim[key], unit.digits, unit.sign) for key in ("low", "high"))
    known = number(claim["delta"]) is not None
    suffix = f" of {datasets}" if claim["kind"] == "datasets_improved" else unit.suffix
    verdict = str(claim["verdict"])
    return ClaimRow(
        id=str(claim["claim"]),
        statement=_word(claim["statement"]),
        detail=_detail(claim),
        level=_word(claim["level"]),
        verdict=verdict,
        mark=MARKS.get(verdict, "?"),
        estimate=text(claim["delta"], unit.digits, unit.sign) + suffix if known else "—",
        interval="" if "—" in (low, high) else f"[{low}, {high}]",
        needed=_needed(claim, unit),
        p=p_text(claim["p_holm"]),
        n="—" if number(claim["n"]) is None else f"{int(claim['n']):,}",
        why=_word(claim["why"]),
        detectable=_detectable(claim, unit, verdict),
        twin=_twin(claim, unit),
    )


def _needed(claim: Mapping[Any, Any], unit: Unit) -> str:
    signed = unit.sign and bool(claim["threshold"]) and claim["kind"] != "equivalent"
    shown = f"{unit.relation} {text(claim['threshold'], unit.digits, signed)}{unit.suffix}"
    return shown.replace("± ", "±")


def _detectable(claim: Mapping[Any, Any], unit: Unit, verdict: str) -> str:
    if verdict != "undecided" or number(claim.get("mdd")) is None:
        return ""
    return text(claim["mdd"], unit.digits) + unit.suffix


def _twin(claim: Mapping[Any, Any], unit: Unit) -> str:
    """`+2.1 pts [+0.4, +3.8]` against the control twin."""
    delta, low, high = (text(claim.get(f"twin_{key}"), unit.digits, unit.sign) for key in ("delta", "low", "high"))
    return "" if delta == "—" else f"{delta}{unit.suffix} [{low}, {high}]"


def _detail(claim: Mapping[Any, Any]) -> str:
    against, twin = _word(claim["baseline"]), _word(claim["twin"])
    words = _word(claim["arm"]) + (f" vs {against}" if against else "")
    return words + (f", control {twin}" if twin else "")


def _word(value: Any) -> str:
    return "" if value is None or value != value else str(value)
