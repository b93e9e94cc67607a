"""Every arm against every other: who wins, who loses, what stays undecided; and which runs there are at all.

In: matrix.parquet (arm, other, dataset, delta, p_holm, outcome) and the items; out: `Figure`s. Both are heatmaps with words in
their cells, so that nothing depends on colour.
"""

from typing import Any

from mtkv.report.figures.figure import Figure, Trace, label, percent, text, tick
from mtkv.report.figures.palette import CELL_TEXT, DIVERGING, SEQUENTIAL
from mtkv.report.results import MACRO, Results
from mtkv.report.strings import listed, say

WORDS = ("win", "tie", "loss")
Known = dict[tuple[str, str, str], dict[Any, Any]]
AXES: dict[str, Any] = {
    "xaxis": {"type": "category", "showgrid": False, "tickangle": 0},
    "yaxis": {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False},
    "margin": {"l": 120, "r": 24, "t": 16, "b": 64},
}


def matrix_figures(results: Results) -> list[Figure]:
    """The matrix, where the study has one, and the heatmap of its runs."""
    return [*([duels(results)] if len(results.matrix) else []), runs(results)]


def duels(results: Results) -> Figure:
    """One view per dataset: the row's arm minus the column's, with win, tie or loss; one row of counts per arm in the table."""
    names = [MACRO, *results.datasets]
    arms = results.matrix_arms
    known: Known = {(r["dataset"], r["arm"], r["other"]): r for r in results.matrix_shown.to_dict("records")}
    counts = results.matrix.groupby(["dataset", "arm", "outcome"], observed=True).size().to_dict()
    bound = max(1.0, *(abs(percent(row["delta"]) or 0.0) for row in known.values()))
    rows = [
        [name, arm, *(str(counts.get((name, arm, word), 0)) for word in WORDS)]
        for name in names
        for arm in results.arms
    ]
    return Figure(
        "matrix",
        "plots",
        "Every arm against every other",
        say(
            "The arm of the row minus the arm of the column, in percentage points, paired on the same items. Win and loss: Holm's p over "
            "all pairs of the shown dataset is below {alpha}. A tie is not equality: this study cannot tell the two apart. The table "
            "counts them; each pair with its interval is in tables/matrix.csv.",
            alpha=f"{results.alpha:.2g}",
        )
        + _unnamed(len(results.arms) - len(arms)),
        [_duel_map(results, known, name, bound) for name in names],
        AXES,
        ["Dataset", "Arm", "Wins", "Ties", "Losses"],
        rows,
        views=[(name, name) for name in names],
        view_label="Dataset",
        height=max(280, 100 + 36 * len(arms)),
    )


def _unnamed(count: int) -> str:
    if not count:
        return ""
    return say(" {count} arms that no claim names are not drawn; the table counts their pairs as well.", count=count)


def _duel_map(results: Results, known: Known, name: str, bound: float) -> Trace:
    arms = results.matrix_arms
    found = [[known.get((name, arm, other)) for other in arms] for arm in arms]
    return _grid(
        [[percent((row or {}).get("delta")) for row in line] for line in found],
        [
            [
                say("{word} {delta}", word=row["outcome"], delta=text(percent(row["delta"]), sign=True)) if row else ""
                for row in line
            ]
            for line in found
        ],
        {"view": name, "columns": {"arm": arms}, **({} if name == MACRO else {"dataset": name})},
        arms,
        arms,
    ) | {"colorscale": DIVERGING, "zmin": -bound, "zmax": bound, "zmid": 0}


def runs(results: Results) -> Figure:
    """How many of an arm's seeds have an answer to each dataset, and why the others have none."""
    names = results.datasets
    there = results.seed_scores.groupby(["arm", "dataset"])["seed"].agg(set).to_dict()
    sizes = results.seed_scores.groupby(["arm", "dataset"])["n"].max().to_dict()
    z, words, rows = [], [], []
    for arm in results.arms:
        seeds = results.runs_of(arm)
        present = [sorted(set(seeds) & there.get((arm, name), set())) for name in names]
        z.append([len(found) / len(seeds) for found in present])
        words.append([f"{len(found)}/{len(seeds)}" for found in present])
        for name, found in zip(names, present, strict=True):
            gone = [seed for seed in seeds if seed not in found]
            reasons = listed(
                (say("seed {seed}: {reason}", seed=seed, reason=_reason(results, arm, seed, name)) for seed in gone),
                "; ",
            )
            shown = [", ".join(map(str, group)) or "—" for group in (found, gone)]
            rows.append([arm, name, *shown, text(sizes.get((arm, name)), 0), reasons or "—"])
    partial = sum(0 < share < 1 for line in z for share in line)
    empty = sum(share == 0 for line in z for share in line)
    return Figure(
        "runs",
        "plots",
        "Runs that there are",
        say(
            "Seeds of each arm that answered each dataset, of those the study asks for. An arm that lacks one has no number for that "
            "dataset and no macro average: it is never averaged over the runs that are left."
        )
        + _holes(partial, empty),
        [
            _grid(z, words, {"columns": {"dataset": names}}, names, results.arms)
            | {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": 1.6, "showscale": False}
        ],
        AXES,
        ["Arm", "Dataset", "Seeds there", "Seeds missing", "n per seed", "Why"],
        rows,
        height=max(240, 90 + 28 * len(results.arms)),
    )


def _holes(partial: int, empty: int) -> str:
    if not partial and not empty:
        return say(" All runs are there.")
    return say(" Partial cells: {partial}; empty ones: {empty}.", partial=partial, empty=empty)


def _reason(results: Results, arm: str, seed: int, dataset: str) -> str:
    known = (results.cards.get("compare", {}).get("result") or {}).get("missing") or {}
    reason = str(known.get(f"{arm}/seed{seed}/{dataset}", "no scores file"))
    failed = reason.removeprefix("failed: ")
    return say("failed: {reason}", reason=failed) if failed != reason else reason


def _grid(
    z: list[list[Any]], words: list[list[str]], meta: dict[str, Any], columns: list[str], arms: list[str]
) -> Trace:
    return {
        "type": "heatmap",
        "name": meta.get("view", "runs"),
        "x": [tick(name) for name in columns],
        "y": [label(arm) for arm in arms],
        "z": z,
        "text": [[label(word) for word in line] for line in words],
        "texttemplate": "%{text}",
        "textfont": CELL_TEXT,
        "hovertemplate": "%{y} · %{x}: %{text}<extra></extra>",
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "colorbar": {"thickness": 12, "outlinewidth": 0},
        "meta": {"rows": {"arm": arms}, "all_seeds_only": True, **meta},
    }
