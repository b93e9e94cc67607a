"""The claims as the page shows them: verdict, estimate with its interval, what was needed, p, and why.

In: `claims.parquet`, in percentage points; for `datasets_improved` the estimate and the threshold are numbers of datasets. An undecided
claim has the smallest difference that the study would have seen; a claim with a control twin has the difference from it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtkv.report.figures.figure import number, p_text, text
from mtkv.report.results import Results
from mtkv.report.strings import Words, retold, say

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
    """How the numbers of one kind of claim are written; `shown` and `relation` are templates for `strings.say`."""

    digits: int
    sign: bool
    shown: str
    relation: str

    def write(self, value: Any, sign: bool | None = None) -> Words:
        """A number with its unit, as in "+2.1 pts"."""
        return say(self.shown, value=text(value, self.digits, self.sign if sign is None else sign))


UNITS = {
    "difference": Unit(1, True, "{value} pts", "> {needed}"),
    "reaches": Unit(1, True, "{value} pts", "≥ {needed}"),
    "accuracy": Unit(1, False, "{value} %", "≥ {needed}"),
    "datasets_improved": Unit(0, False, "{value} datasets", "≥ {needed}"),
    "equivalent": Unit(1, True, "{value} pts", "within ±{needed}"),
    "differ": Unit(1, True, "{value} pts", "≠ {needed}"),
    "recovers": Unit(0, False, "{value} %", "> {needed}"),
}


def claim_texts(rows: Iterable[ClaimRow]) -> Iterator[str]:
    """All texts in the rows, for the page's switch of languages."""
    for row in rows:
        yield from (row.statement, row.detail, row.estimate, row.needed, row.why, row.detectable, row.twin)


def claim_rows(results: Results) -> list[ClaimRow]:
    """One row per claim, in the order of claims.parquet (that of the config)."""
    return [_row(claim, len(results.datasets)) for claim in results.claims.to_dict("records")]


def _row(claim: Mapping[Any, Any], datasets: int) -> ClaimRow:
    unit = UNITS.get(claim["kind"], UNITS["difference"])
    low, high = (text(claim[key], unit.digits, unit.sign) for key in ("low", "high"))
    known = number(claim["delta"]) is not None
    estimate: str = unit.write(claim["delta"])
    if claim["kind"] == "datasets_improved":
        estimate = say("{value} of {total}", value=text(claim["delta"], 0), total=datasets)
    verdict = str(claim["verdict"])
    return ClaimRow(
        id=str(claim["claim"]),
        statement=_word(claim["statement"]),
        detail=_detail(claim),
        level=_word(claim["level"]),
        verdict=verdict,
        mark=MARKS.get(verdict, "?"),
        estimate=estimate if known else "—",
        interval="" if "—" in (low, high) else f"[{low}, {high}]",
        needed=_needed(claim, unit),
        p=p_text(claim["p_holm"]),
        n="—" if number(claim["n"]) is None else f"{int(claim['n']):,}",
        why=retold(claim["why"], claim.get("why_parts")),
        detectable=_detectable(claim, unit, verdict),
        twin=_twin(claim, unit),
    )


def _needed(claim: Mapping[Any, Any], unit: Unit) -> str:
    signed = unit.sign and bool(claim["threshold"]) and claim["kind"] != "equivalent"
    return say(unit.relation, needed=unit.write(claim["threshold"], signed))


def _detectable(claim: Mapping[Any, Any], unit: Unit, verdict: str) -> str:
    if verdict != "undecided" or number(claim.get("mdd")) is None:
        return ""
    return unit.write(claim["mdd"], sign=False)


def _twin(claim: Mapping[Any, Any], unit: Unit) -> str:
    """The difference from the control twin, as in `+2.1 pts [+0.4, +3.8]`; empty without a twin."""
    delta, low, high = (text(claim.get(f"twin_{key}"), unit.digits, unit.sign) for key in ("delta", "low", "high"))
    return "" if delta == "—" else unit.write(claim["twin_delta"]) + f" [{low}, {high}]"


def _detail(claim: Mapping[Any, Any]) -> str:
    against, twin = _word(claim["baseline"]), _word(claim["twin"])
    words = say("{arm} vs {other}", arm=_word(claim["arm"]), other=against) if against else _word(claim["arm"])
    return words + say(", control {twin}", twin=twin) if twin else words


def _word(value: Any) -> str:
    return "" if value is None or value != value else str(value)
