"""The difference of two studies as tables for a terminal and as JSON for programs (its schema is in docs/report.md)."""

from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtkv.report.figures.figure import p_text, percent, text, word
from mtkv.report.summary import records
from mtkv.study_diff.diff import StudyDiff

SCHEMA = 1
PARTS = ("config", "data", "versions", "code", "claims", "scores")
VERDICTS = ("claim", "verdict a", "verdict b", "Δ a", "Δ b")
SCORES = ("arm", "dataset", "a (%)", "b (%)", "b − a (points)", "interval", "p", "p (Holm)", "sees", "n", "note")
LEFT_SCORES = ("arm", "dataset", "note")


def difference_json(diff: StudyDiff, confidence: float) -> dict[str, Any]:
    """All rows as JSON-able values. Unknown numbers are null; accuracies and differences lie in 0..1, those of claims are points."""
    facts = {"schema": SCHEMA, "a": diff.a, "b": diff.b, "confidence": confidence, "same": diff.same}
    return facts | {part: records(getattr(diff, part)) for part in PARTS}


def print_differences(diff: StudyDiff, confidence: float, console: Console) -> None:
    """Print all parts, one below the other; a part without differences is one line."""
    console.print(Text(f"a: {diff.a}\nb: {diff.b}"))
    for part in ("config", "data", "versions", "code"):
        _facts(part, getattr(diff, part), console)
    if diff.claims.empty:
        console.print("claims: no difference")
    else:
        shown = _table("claims: verdicts that differ", VERDICTS, ("claim", "verdict a", "verdict b"))
        for row in diff.claims.to_dict("records"):
            deltas = (text(row[key], sign=True) for key in ("delta_a", "delta_b"))
            _row(shown, [*(word(row[key]) for key in ("claim", "verdict_a", "verdict_b")), *deltas])
        console.print(shown)
    _scores(diff, confidence, console)
    if diff.same:
        console.print("Nothing differs.")


def _facts(part: str, frame: pd.DataFrame, console: Console) -> None:
    if frame.empty:
        console.print(f"{part}: no difference")
        return
    shown = _table(f"{part}: {len(frame)} differ", tuple(frame.columns), tuple(frame.columns))
    for row in frame.itertuples(index=False):
        _row(shown, [str(value) for value in row])
    console.print(shown)


def _scores(diff: StudyDiff, confidence: float, console: Console) -> None:
    """Print the rows with a difference or a missing number, and count the others."""
    frame = diff.scores
    moved = frame[(frame["status"] != "ok") | (frame["delta"] != 0)]
    equal = len(frame) - len(moved)
    if moved.empty:
        console.print(f"scores: no difference in any of {equal} cells")
        return
    title = (
        f"scores: b − a, paired on the questions both asked, {confidence:.0%} intervals; {equal} equal cells left out"
    )
    shown = _table(title, SCORES, LEFT_SCORES)
    last = None
    for row in moved.to_dict("records"):
        if last not in (None, row["arm"]):
            shown.add_section()
        last = row["arm"]
        _row(shown, _score(row))
    console.print(shown)


def _score(row: dict[Any, Any]) -> list[str]:
    low, high = (text(percent(row[key]), 1, sign=True) for key in ("low", "high"))
    return [
        row["arm"],
        row["dataset"],
        *(text(percent(row[key])) for key in ("mean_a", "mean_b")),
        text(percent(row["delta"]), sign=True),
        "—" if low == "—" else f"[{low}, {high}]",
        *(p_text(row[key]) for key in ("p", "p_holm")),
        "—" if text(percent(row["mdd"])) == "—" else f"≥ {text(percent(row['mdd']))}",
        str(row["n_items"]),
        word(row["reason"]),
    ]


def _table(title: str, columns: tuple[str, ...], left: tuple[str, ...]) -> Table:
    shown = Table(title=title, title_justify="left")
    for column in columns:
        shown.add_column(column, justify="left" if column in left else "right", overflow="fold")
    return shown


def _row(table: Table, cells: list[str]) -> None:
    table.add_row(*map(Text, cells))  # escaped: names and values come from files, and are no markup
