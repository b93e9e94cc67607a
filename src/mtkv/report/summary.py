"""The report for machines and for a mail: results.json with every number and the cards behind it, and comparison_report.md.

In: `Results`. Out: a JSON-able dict (its schema is in docs/report.md), and Markdown. Shares lie in 0..1, claims are in percentage points.
`claim_rows` are the claims as the page and the Markdown show them: verdict, estimate with its interval, what was needed, p, and why; for
`datasets_improved` the estimate and the threshold are numbers of datasets. An undecided claim has the smallest difference that the study
would have seen; a claim with a control twin has the difference from it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mtkv.report.figures.cost import MEASURES, arm_costs
from mtkv.report.figures.figure import mean, number, p_text, text, word
from mtkv.report.figures.pairs import pair_text
from mtkv.report.figures.where import where_pairs
from mtkv.report.results import MACRO, Results
from mtkv.report.strings import Words, retold, say
from mtkv.report.tables import Row, as_markdown, headline, headline_table, missing_cells

MARKS = {"supported": "✓", "refuted": "✗", "undecided": "?"}


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
    return [claim_row(claim, len(results.datasets)) for claim in results.claims.to_dict("records")]


def claim_row(claim: Mapping[Any, Any], datasets: int) -> ClaimRow:
    """One row of claims.parquet of a study with so many datasets."""
    unit = UNITS.get(claim["kind"], UNITS["difference"])
    low, high = (text(claim[key], unit.digits, unit.sign) for key in ("low", "high"))
    known = number(claim["delta"]) is not None
    estimate: str = unit.write(claim["delta"])
    if claim["kind"] == "datasets_improved":
        estimate = say("{value} of {total}", value=text(claim["delta"], 0), total=datasets)
    verdict = str(claim["verdict"])
    return ClaimRow(
        id=str(claim["claim"]),
        statement=word(claim["statement"]),
        detail=_detail(claim),
        level=word(claim["level"]),
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
    against, twin = word(claim["baseline"]), word(claim["twin"])
    words = say("{arm} vs {other}", arm=word(claim["arm"]), other=against) if against else word(claim["arm"])
    return words + say(", control {twin}", twin=twin) if twin else words


SCHEMA = 1
RUN = ("arm", "seed", "dataset")
CARD_FACTS = (
    *("stage", "wildcards", "created", "config_digest", "code_digest", "git", "wall_seconds"),
    *("peak_memory_mb", "peak_gpu_memory_mb", "seed"),
)


def results_json(results: Results) -> dict[str, Any]:
    """Every number of the report as JSON-able values; unknown numbers are null, never NaN."""
    costs = arm_costs(results)
    return {
        "schema": SCHEMA,
        "study": results.name,
        "description": results.description,
        "baseline": results.baseline,
        "confidence": results.confidence,
        "datasets": results.datasets,
        "seeds": results.seeds,
        "grade": results.grade,
        "arms": {arm: _arm(results, arm, costs.get(arm, {})) for arm in results.arms},
        "claims": records(results.claims),
        "cells": [row | {"cards": cell_cards(results, row["arm"], row["dataset"])} for row in records(results.cells)],
        "pairs": records(results.pairs),
        "matrix": records(results.matrix_shown),
        "runs": [
            row | {"cards": run_cards(results, *(row[name] for name in RUN))} for row in records(results.seed_scores)
        ],
        "missing": missing_cells(headline(results)),
        "absent": results.absent,
        "cards": {key: {name: card.get(name) for name in CARD_FACTS} for key, card in results.cards.items()},
    }


def _arm(results: Results, arm: str, cost: dict[str, dict[int, float | None]]) -> dict[str, Any]:
    return {
        "description": results.descriptions[arm],
        "trained": arm in results.trained,
        "extends": results.extends.get(arm),
        "changes": results.changes.get(arm, []),
        "kv": results.kv.get(arm),
        "seeds": results.runs_of(arm),
        "cost": {title: {str(seed): value for seed, value in values.items()} for title, values in cost.items()},
    }


def run_cards(results: Results, arm: str, seed: int, dataset: str) -> list[str]:
    """Keys of the cards that made the number of one run on one dataset (or on all, for "macro")."""
    run = f"{arm}/seed{seed}"
    keys = [f"{stage}/{run}" for stage in ("arms", "predictions", "scores")]
    names = results.datasets if dataset == MACRO else [dataset]
    keys += [f"{stage}/{run}/{name}" for stage in ("predictions", "scores") for name in names]
    return [key for key in keys if key in results.cards]


def cell_cards(results: Results, arm: str, dataset: str) -> list[str]:
    """Keys of the cards behind a cell: those of its runs, then that of the comparison."""
    runs = [key for seed in results.runs_of(arm) for key in run_cards(results, arm, seed, dataset)]
    return [*runs, *(["compare"] if "compare" in results.cards else [])]


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON-able dicts."""
    return [{str(key): plain(value) for key, value in row.items()} for row in frame.to_dict("records")]


def plain(value: Any) -> Any:
    """A Python value; null for NaN and infinities."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and not math.isfinite(value)) or value is pd.NA:
        return None
    return value


def comparison_report(results: Results) -> str:
    """The study on one page of Markdown: answer, scores, differences, ablations, cost, what is missing."""
    rows = headline(results)
    parts = [f"# {results.name}: comparison report", results.description, *_answer(results), *_scores(results, rows)]
    against = [(arm, results.baseline) for arm in results.arms]
    parts += _differences(results, f"Differences from {results.baseline}", against)
    parts += _differences(results, "Where KV helps: gain over no KV and over the control twin", where_pairs(results))
    parts += _differences(results, "Each arm against the arm it extends", list(results.extends.items()))
    parts += _cost(results)
    gone = [*missing_cells(rows), *(f"{name}: not among the study's files" for name in results.absent)]
    parts += ["## What is missing", "\n".join(f"- {line}" for line in gone) or "Nothing."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(results: Results) -> list[str]:
    header = ["verdict", "claim", "estimate", "interval", "needed", "p (Holm)", "n", "why"]
    rows = [[c.verdict, c.statement, c.estimate, c.interval, c.needed, c.p, c.n, c.why] for c in claim_rows(results)]
    grade = f"Grade: **{results.grade}** (the highest level whose claims are all supported)."
    return ["## Answer", grade, as_markdown(header, rows).rstrip() if rows else "The study declares no claims."]


def _scores(results: Results, rows: list[Row]) -> list[str]:
    table = headline_table(rows)
    note = f"Accuracy in percent with its {results.confidence:.0%} interval; * not distinguishable from the best of its column."
    return ["## Scores", note, as_markdown(table.header, table.rows).rstrip()]


def _differences(results: Results, title: str, pairs: list[tuple[str, str]]) -> list[str]:
    header = ["arm", "against", "Δ (points)", "interval", "p", "p (Holm)", "outcome", "n", "seeds"]
    header += ["smallest detectable Δ", "changes"]
    rows = []
    for arm, other in pairs:
        if (pair := results.pair(arm, MACRO, other)) is not None:
            changes = "; ".join(results.changes.get(arm, [])) if other == results.extends.get(arm) else ""
            rows.append([arm, other, *pair_text(pair, results.alpha), changes])
    note = "Macro average, paired on the same items. “Undecided” is not “no difference”: see the smallest detectable Δ."
    return [f"## {title}", note, as_markdown(header, rows).rstrip()] if rows else []


def _cost(results: Results) -> list[str]:
    costs = arm_costs(results)
    header = ["arm", *(one.title for one in MEASURES)]
    rows = [
        [arm, *(text(mean(cost[one.title].values()), one.digits) for one in MEASURES)] for arm, cost in costs.items()
    ]
    return ["## Cost of a training run", as_markdown(header, rows).rstrip()] if rows else []
