"""The report for machines and for a mail: results.json with every number and the cards behind it, and comparison_report.md.

In: `Results`. Out: a JSON-able dict (its schema is in docs/report.md), and Markdown. Shares lie in 0..1, claims are in percentage points.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from mtkv.report.claim_rows import claim_rows
from mtkv.report.figures.cost import MEASURES, arm_costs
from mtkv.report.figures.figure import mean, text
from mtkv.report.figures.pairs import pair_text
from mtkv.report.results import MACRO, Results
from mtkv.report.tables import Row, as_markdown, headline, headline_table, missing_cells

SCHEMA = 1
CARD_FACTS = (
    "stage",
    "wildcards",
    "created",
    "config_digest",
    "code_digest",
    "git",
    "wall_seconds",
    "peak_memory_mb",
    "peak_gpu_memory_mb",
    "seed",
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
            row | {"cards": run_cards(results, row["arm"], row["seed"], row["dataset"])}
            for row in records(results.seed_scores)
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
    parts += _differences(
        results, f"Differences from {results.baseline}", [(arm, results.baseline) for arm in results.arms]
    )
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
    header = [
        "arm",
        "against",
        "Δ (points)",
        "interval",
        "p",
        "p (Holm)",
        "outcome",
        "n",
        "seeds",
        "smallest detectable Δ",
        "changes",
    ]
    rows = [
        [
            arm,
            other,
            *pair_text(pair, results.alpha),
            "; ".join(results.changes.get(arm, [])) if other == results.extends.get(arm) else "",
        ]
        for arm, other in pairs
        if (pair := results.pair(arm, MACRO, other)) is not None
    ]
    note = "Macro average, paired on the same items. “Undecided” is not “no difference”: see the smallest detectable Δ."
    return [f"## {title}", note, as_markdown(header, rows).rstrip()] if rows else []


def _cost(results: Results) -> list[str]:
    costs = arm_costs(results)
    header = ["arm", *(one.title for one in MEASURES)]
    rows = [
        [arm, *(text(mean(cost[one.title].values()), one.digits) for one in MEASURES)] for arm, cost in costs.items()
    ]
    return ["## Cost of a training run", as_markdown(header, rows).rstrip()] if rows else []
