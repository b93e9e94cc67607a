"""The tables of the report, the headline (arms × datasets and macro average) first, and their form as CSV, Markdown and LaTeX.

In: `Results`; out: rows of text. Accuracies are percentages with one decimal; a missing cell says so and is never averaged over.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mtkv.report.figures.cost import MEASURES, arm_costs
from mtkv.report.figures.figure import Verbatim, mean, number, outcome, percent, text, word
from mtkv.report.results import MACRO, Results, reason_of
from mtkv.report.strings import say

MATRIX_HEADER = ["arm", "other", "dataset", "delta", "low", "high", "p", "p (Holm)", "n", "seeds", "outcome"]
MATRIX_COLUMNS = ["arm", "other", "dataset", "delta", "low", "high", "p", "p_holm", "n_items", "n_seeds", "outcome"]
CONTROL = [*range(32), 127]
BLANK = "\t\n\v\f\r"
CSV_QUOTED = re.compile(r'[",\x00-\x1f\x7f\x85\u2028\u2029]')
MARKDOWN_SPECIAL = str.maketrans({"\\": "\\\\", "|": "\\|", "<": "&lt;", "&": "&amp;"})
MARKDOWN_SPECIAL |= {code: f"&#{code};" for code in (*CONTROL, 0x85, 0x2028, 0x2029)}
LATEX_SPECIAL = {letter: rf"\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u2212": "$-$",
    "Δ": r"$\Delta$",
    "—": "---",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "–": "--",
    "√": r"$\surd$",
    "α": r"$\alpha$",
    "λ": r"$\lambda$",
    "←": r"$\leftarrow$",
    "␣": r"\textvisiblespace{}",
    "⏎": r"$\hookleftarrow$",
    "⇥": r"$\mapsto$",
}
# TeX refuses control characters, or ends its line there: a blank for white space, ^[ for others.
LATEX_SPECIAL |= {chr(code): rf"\textasciicircum{{}}{chr(code ^ 64)}" for code in CONTROL if chr(code) not in BLANK}
LATEX_TABLE = str.maketrans(LATEX_SPECIAL | dict.fromkeys(BLANK, " "))


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
    """A table of text, ready to be written in any format."""

    id: str
    header: list[str]
    rows: list[list[str]]


def headline(results: Results) -> list[Row]:
    """The rows of the headline table: the baseline first, then the arms in the study's order."""
    arms = sorted(results.arms, key=lambda arm: arm != results.baseline)
    cells = {arm: [_cell(results, arm, name) for name in results.columns] for arm in arms}
    return [Row(arm, results.descriptions.get(arm, ""), arm == results.baseline, cells[arm]) for arm in arms]


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
        reason=reason_of(row) if value is None else "",
        by_seed={str(seed): percent(results.accuracy(arm, dataset, seed)) for seed in results.seeds},
    )


def missing_cells(rows: list[Row]) -> list[str]:
    """One line per cell without a number."""
    return [
        say("{arm} · {dataset}: {status} ({reason})", arm=row.arm, dataset=c.dataset, status=c.status, reason=c.reason)
        for row in rows
        for c in row.cells
        if c.value is None
    ]


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
    header = ["claim", "statement", "level", "verdict", "estimate", "low", "high", "needed", "p", "p (Holm)", "n"]
    header += ["seeds", "mdd", "twin", "twin estimate", "twin low", "twin high", "why"]
    rows = [
        [
            str(claim["claim"]),
            Verbatim(claim["statement"]),
            *(word(claim[key]) for key in ("level", "verdict")),
            *(text(claim[key]) for key in ("delta", "low", "high", "threshold")),
            *(text(claim[key], 4) for key in ("p", "p_holm")),
            *(text(claim.get(key), 0) for key in ("n", "n_seeds")),
            text(claim.get("mdd")),
            word(claim["twin"]),
            *(text(claim.get(f"twin_{key}")) for key in ("delta", "low", "high")),
            Verbatim(word(claim["why"])),
        ]
        for claim in results.claims.to_dict("records")
    ]
    return Table("claims", header, rows)


def pairs_table(results: Results) -> Table:
    """Every paired difference, in percentage points."""
    header = ["arm", "baseline", "dataset", "delta", "low", "high", "p", "p (Holm)", "outcome", "n", "seeds"]
    header += ["sd seeds", "sd items", "mdd", "p (TOST)", "t over seeds", "p over seeds", "Cohen's d", "family"]
    order = {name: i for i, name in enumerate(results.columns)}
    pairs = sorted(results.pairs.to_dict("records"), key=lambda pair: order.get(pair["dataset"], 99))
    return Table("pairs", header, [_pair_row(results, pair) for pair in pairs])


def _pair_row(results: Results, pair: dict[Any, Any]) -> list[str]:
    return [
        *(str(pair[key]) for key in ("arm", "baseline", "dataset")),
        *(text(percent(pair[key]), 2) for key in ("delta", "low", "high")),
        *(text(pair[key], 4) for key in ("p", "p_holm")),
        outcome(pair, results.alpha),
        *(text(pair[key], 0) for key in ("n_items", "n_seeds")),
        *(text(percent(pair[key]), 2) for key in ("sd_seeds", "sd_items", "mdd")),
        text(pair.get("p_tost"), 4),
        *(text(pair.get(key), 3) for key in ("t_seeds", "p_seeds", "cohens_d")),
        word(pair["family"]),
    ]


def matrix_csv(results: Results) -> Iterator[bytes]:
    """CSV of every arm against every other, whether shown on the page or not; in parts, for there may be millions of pairs."""
    yield as_csv(MATRIX_HEADER, []).encode()
    for start in range(0, len(results.matrix), 100_000):
        part = results.matrix.iloc[start : start + 100_000]
        part = part.astype(dict.fromkeys(("arm", "other", "dataset", "outcome"), str))
        for names, factor, digits in ((["delta", "low", "high"], 100, 2), (["p", "p_holm"], 1, 4)):
            part[names] = ((part[names] * factor).round(digits) + 0.0).map(f"{{:.{digits}f}}".format)
        yield part[MATRIX_COLUMNS].to_csv(header=False, index=False, lineterminator="\n").encode()


def matrix_table(results: Results) -> Table:
    """The arms of `Results.matrix_arms` against each other, in percentage points."""
    rows = [
        [
            *(row[key] for key in ("arm", "other", "dataset")),
            *(text(percent(row[key]), 2) for key in ("delta", "low", "high")),
            *(text(row[key], 4) for key in ("p", "p_holm")),
            *(text(row[key], 0) for key in ("n_items", "n_seeds")),
            row["outcome"],
        ]
        for row in results.matrix_shown.to_dict("records")
    ]
    return Table("matrix", MATRIX_HEADER, rows)


def models_table(results: Results) -> Table:
    """One row per arm: accuracies (%) with intervals, the difference from the baseline, and what a run cost."""
    costs = arm_costs(results)
    titles = [one.title for one in MEASURES]
    header = ["arm", "trained", "extends", "changes"]
    header += [f"{name}{suffix}" for name in results.columns for suffix in ("", " low", " high", " n", " seeds")]
    header += ["sd over seeds", "rank", "rank low", "rank high", "delta", "delta low", "delta high", "p (Holm)"]
    header += ["outcome", "mdd", *titles]
    return Table("models", header, [_model_row(results, arm, costs.get(arm, {}), titles) for arm in results.arms])


def _model_row(results: Results, arm: str, cost: dict[str, dict[int, float | None]], titles: list[str]) -> list[str]:
    trained = "yes" if arm in results.trained else "no"
    row = [arm, trained, results.extends.get(arm, ""), "; ".join(results.changes.get(arm, []))]
    for name in results.columns:
        cell = results.cell(arm, name)
        row += [text(percent(cell.get(key)), 2, missing="") for key in ("mean", "low", "high")]
        row += [text(cell.get(key), 0, missing="") for key in ("n_items", "n_seeds")]
    macro, pair = results.cell(arm, MACRO), results.pair(arm, MACRO) or {}
    row.append(text(percent(macro.get("sd_seeds")), 2, missing=""))
    row += [text(macro.get(key), 0, missing="") for key in ("rank", "rank_low", "rank_high")]
    row += [text(percent(pair.get(key)), 2, missing="") for key in ("delta", "low", "high")]
    row.append(text(pair.get("p_holm"), 4, missing=""))
    row.append("" if arm == results.baseline else outcome(pair, results.alpha))
    row.append(text(percent(pair.get("mdd")), 2, missing=""))
    return [*row, *(text(mean(cost.get(title, {}).values()), 3, missing="") for title in titles)]


def as_csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """CSV with plain minus signs; unknown values are empty. Text that is `verbatim` is kept as it is."""
    return "".join(",".join(map(_csv, row)) + "\n" for row in [header, *rows])


def _csv(cell: str) -> str:
    if not hasattr(cell, "verbatim"):
        cell = "" if cell == "—" else cell.replace("\u2212", "-")
    # Python's csv would leave a bare \r unquoted, which other readers take for the end of the row.
    return '"' + cell.replace('"', '""') + '"' if CSV_QUOTED.search(cell) else cell


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table; line ends and other control characters are character references."""
    head, *lines = [[cell.translate(MARKDOWN_SPECIAL) for cell in line] for line in (header, *rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in (head, ["---"] * len(head), *lines))


def as_latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A booktabs tabular."""
    head, *lines = [" & ".join(cell.translate(LATEX_TABLE) for cell in row) + r" \\" for row in [header, *rows]]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", ""])


FORMATS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], str]] = {
    "csv": as_csv,
    "md": as_markdown,
    "tex": as_latex,
}
