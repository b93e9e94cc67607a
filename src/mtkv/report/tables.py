"""The headline table (arms × datasets and macro average) and the other tables, and all of them as CSV, Markdown and LaTeX.

In: `Results`; out: rows of text. Accuracies are percentages with one decimal; a missing cell says so and is never averaged over.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mtkv.report.figure import number, percent, text
from mtkv.report.results import Results

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u2212": "$-$",
    "Δ": r"$\Delta$",
    "—": "---",
    "≥": r"$\geq$",
}


@dataclass(frozen=True)
class Cell:
    """One number of the headline table, ready to show."""

    dataset: str
    value: float | None
    low: str
    high: str
    n: int | None
    seeds: int | None
    tied: bool
    status: str
    reason: str
    by_seed: dict[str, float | None]


@dataclass(frozen=True)
class Row:
    """One arm of the headline table."""

    arm: str
    description: str
    is_baseline: bool
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """A plain table of text."""

    id: str
    header: list[str]
    rows: list[list[str]]


def headline(results: Results) -> list[Row]:
    """The headline table, the baseline first, then the arms in the study's order."""
    arms = sorted(results.arms, key=lambda arm: arm != results.baseline)
    return [
        Row(
            arm,
            results.descriptions.get(arm, ""),
            arm == results.baseline,
            [_cell(results, arm, name) for name in results.columns],
        )
        for arm in arms
    ]


def _cell(results: Results, arm: str, dataset: str) -> Cell:
    row = results.cell(arm, dataset)
    value = percent(row.get("mean"))
    return Cell(
        dataset=dataset,
        value=value,
        low=text(percent(row.get("low"))),
        high=text(percent(row.get("high"))),
        n=None if number(row.get("n_items")) is None else int(row["n_items"]),
        seeds=None if number(row.get("n_seeds")) is None else int(row["n_seeds"]),
        tied=bool(row.get("tied") is True or row.get("tied") == 1),
        status="ok" if value is not None and row["status"] == "ok" else str(row["status"]),
        reason=str(row.get("reason") or "no reason given") if value is None else "",
        by_seed={str(seed): percent(results.accuracy(arm, dataset, seed)) for seed in results.seeds},
    )


def missing_cells(rows: list[Row]) -> list[str]:
    """One line per cell without a number."""
    return [f"{row.arm} · {c.dataset}: {c.status} ({c.reason})" for row in rows for c in row.cells if c.value is None]


def headline_table(rows: list[Row]) -> Table:
    """The headline table as plain text: `62.5 [55.6, 69.0]`, with a star in the tied-best set."""
    header = ["arm", *(cell.dataset for cell in rows[0].cells)] if rows else ["arm"]
    return Table("headline", header, [[row.arm, *(_plain(cell) for cell in row.cells)] for row in rows])


def _plain(cell: Cell) -> str:
    if cell.value is None:
        return cell.status
    return f"{text(cell.value)} [{cell.low}, {cell.high}]{'*' if cell.tied else ''}"


def claims_table(results: Results) -> Table:
    """One row per claim."""
    header = ["claim", "statement", "level", "verdict", "estimate", "low", "high", "p (Holm)", "n", "why"]
    rows = [
        [
            *(_word(claim[key]) for key in ("claim", "statement", "level", "verdict")),
            *(text(claim[key]) for key in ("delta", "low", "high")),
            text(claim["p_holm"], 3),
            text(claim["n"], 0),
            _word(claim["why"]),
        ]
        for claim in results.claims.to_dict("records")
    ]
    return Table("claims", header, rows)


def pairs_table(results: Results) -> Table:
    """Every paired difference, in percentage points."""
    header = [
        "arm",
        "baseline",
        "dataset",
        "delta",
        "low",
        "high",
        "p",
        "p (Holm)",
        "n",
        "seeds",
        "sd seeds",
        "sd items",
        "mdd",
        "family",
    ]
    order = {name: i for i, name in enumerate(results.columns)}
    rows = [
        [
            *(str(pair[key]) for key in ("arm", "baseline", "dataset")),
            *(text(percent(pair[key]), 2) for key in ("delta", "low", "high")),
            text(pair["p"], 4),
            text(pair["p_holm"], 4),
            text(pair["n_items"], 0),
            text(pair["n_seeds"], 0),
            *(text(percent(pair[key]), 2) for key in ("sd_seeds", "sd_items", "mdd")),
            _word(pair["family"]),
        ]
        for pair in sorted(results.pairs.to_dict("records"), key=lambda pair: order.get(pair["dataset"], 99))
    ]
    return Table("pairs", header, rows)


def _word(value: Any) -> str:
    return "" if value is None or value != value else str(value)


def as_csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """CSV with plain minus signs."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([[cell.replace("\u2212", "-") for cell in row] for row in [header, *rows]])
    return buffer.getvalue()


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = [
        [cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in line]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped) + "\n"


def as_latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A booktabs tabular."""
    lines = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in [header, *rows]]
    columns = "l" + "r" * (len(header) - 1)
    return (
        "\n".join(
            [
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
            ]
        )
        + "\n"
    )


def _latex(cell: str) -> str:
    return "".join(LATEX_SPECIAL.get(letter, letter) for letter in cell.replace("\n", " "))


FORMATS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], str]] = {
    "csv": as_csv,
    "md": as_markdown,
    "tex": as_latex,
}
