"""Accuracies as pictures: grouped bars with whiskers and seed dots, a radar over the datasets, a heatmap of arms × datasets.

In: `Results`; out: `Figure`s in percent. Whiskers are the cells' confidence intervals; dots are single seeds. Also every arm against
every other (from matrix.parquet: who wins, who loses, what stays undecided), and which runs there are at all: heatmaps with words in
their cells, so that nothing depends on colour.
"""

from typing import Any

from mtkv.report.figures.figure import Figure, Trace, by_seed, interval, label, number, p_text, percent, text, tick
from mtkv.report.figures.palette import (
    ACROSS,
    DIVERGING,
    DOWN,
    P_VALUES,
    SEQUENTIAL,
    ArmStyle,
    arm_styles,
    centred,
    error_bars,
    heatmap_trace,
    margin,
)
from mtkv.report.results import MACRO, Results, reason_of
from mtkv.report.strings import Quoting, chinese, listed, say


def score_figures(results: Results) -> list[Figure]:
    """Bars, radar and heatmap."""
    return [bars(results), radar(results), heatmap(results)]


def bars(results: Results) -> Figure:
    """One group of bars per dataset and for the macro average."""
    styles = arm_styles(results.arms, results.trained, results.baseline)
    traces = [trace for arm in results.arms for trace in _bar_and_dots(results, arm, styles[arm])]
    header = ["Arm", *results.columns]
    rows = [[arm, *(_cell_text(results.cell(arm, name)) for name in results.columns)] for arm in results.arms]
    best = max(results.students or results.arms, key=lambda arm: number(results.cell(arm, MACRO).get("mean")) or -1.0)
    return Figure(
        "bars",
        "plots",
        "Accuracy per dataset",
        say(
            "Accuracy in percent per dataset and arm. Whiskers: {confidence} interval; dots: single seeds. "
            "Highest macro average of a student: {best} ({value} %).",
            confidence=f"{results.confidence:.0%}",
            best=best,
            value=text(percent(results.cell(best, MACRO).get("mean"))),
        ),
        traces,
        {
            "barmode": "group",
            "scattermode": "group",
            "bargap": 0.18,
            "scattergap": 0.18,
            "yaxis": {"title": {"text": "Accuracy (%)"}, "range": [0, 100]},
            "xaxis": ACROSS,
        },
        header,
        rows,
        height=460,
    )


def _bar_and_dots(results: Results, arm: str, style: ArmStyle) -> list[Trace]:
    names = results.columns
    cells = [results.cell(arm, name) for name in names]
    whiskers = [interval(cell.get("low"), cell.get("high"), cell.get("mean")) for cell in cells]
    seeds = {s: [percent(results.accuracy(arm, name, s)) for name in names] for s in results.seeds}
    bar: Trace = {
        "type": "bar",
        "name": label(arm),
        "legendgroup": arm,
        "offsetgroup": arm,
        "x": [tick(name) for name in names],
        "y": [percent(cell.get("mean")) for cell in cells],
        "error_y": error_bars(whiskers, 1.2, 2),
        "marker": {"color": style.color, "pattern": {"shape": "/" if style.dash != "solid" else ""}},
        "meta": {"arm": arm, "points": {"dataset": names}, "by_seed": by_seed("y", seeds)},
        "hovertemplate": "%{fullData.name}<br>%{x}: %{y:.1f} %<extra></extra>",
    }
    points = [(name, s, seeds[s][i]) for i, name in enumerate(names) for s in results.seeds if seeds[s][i] is not None]
    dots: Trace = {
        "type": "scatter",
        "mode": "markers",
        "name": label(arm),
        "legendgroup": arm,
        "offsetgroup": arm,
        "showlegend": False,
        "x": [tick(name) for name, _, _ in points],
        "y": [value for _, _, value in points],
        "text": [say("seed {seed}", seed=s) for _, s, _ in points],
        "marker": {"color": "rgba(255,255,255,0.75)", "size": 4, "line": {"color": "#22262B", "width": 1}},
        "meta": {"arm": arm, "points": {"dataset": [p[0] for p in points], "seed": [p[1] for p in points]}},
        "hovertemplate": "%{fullData.name}, %{text}<br>%{x}: %{y:.1f} %<extra></extra>",
    }
    return [bar, dots] if points else [bar]


def radar(results: Results) -> Figure:
    """All arms over the datasets: one scale from 0 to 100, datasets in the study's order."""
    styles = arm_styles(results.arms, results.trained, results.baseline)
    names = results.datasets
    traces: list[Trace] = []
    for arm in results.arms:
        seeds = {s: [percent(results.accuracy(arm, name, s)) for name in names] for s in results.seeds}
        reference = arm not in results.trained
        traces.append(
            {
                "type": "scatterpolar",
                "mode": "lines+markers",
                "name": label(arm),
                "theta": [label(name) for name in names],
                "r": [percent(results.cell(arm, name).get("mean")) for name in names],
                "line": {"color": styles[arm].color, "width": 1.5, "dash": "dot"}
                if reference
                else {"color": styles[arm].color, "width": 2.2, "dash": styles[arm].dash},
                "marker": {"color": styles[arm].color, "symbol": styles[arm].symbol, "size": 6},
                "meta": {"arm": arm, "points": {"dataset": names}, "by_seed": by_seed("r", seeds)},
                "hovertemplate": "%{fullData.name}<br>%{theta}: %{r:.1f} %<extra></extra>",
            }
        )
    layout = {
        "polar": {
            "radialaxis": {"range": [0, 100], "angle": 90, "tickangle": 90, "ticksuffix": " %"},
            "angularaxis": {"direction": "clockwise", "rotation": 90},
        },
        "margin": {"l": 90, "r": 90, "t": 36, "b": 36},
        "legend": {"orientation": "v", "x": 1.08, "y": 1, "xanchor": "left", "yanchor": "top"},
    }
    rows = [[arm, *(text(percent(results.cell(arm, name).get("mean"))) for name in names)] for arm in results.arms]
    caption = (
        "Accuracy in percent, one scale for all datasets, datasets in the study's order. "
        "Dotted greys are arms without training. An area has no meaning here; read the spokes."
    )
    return Figure(
        "radar", "plots", "Profile over the datasets", caption, traces, layout, ["Arm", *names], rows, height=520
    )


def heatmap(results: Results) -> Figure:
    """Arms × datasets as colours: accuracy, Δ against the baseline, Holm-adjusted p, or the smallest detectable Δ."""
    arms, names = results.arms, results.columns
    score = [[percent(results.cell(arm, name).get("mean")) for name in names] for arm in arms]
    deltas = [[percent((results.pair(arm, name) or {}).get("delta")) for name in names] for arm in arms]
    ps = [[number((results.pair(arm, name) or {}).get("p_holm")) for name in names] for arm in arms]
    score_seeds = {s: [[percent(results.accuracy(a, name, s)) for name in names] for a in arms] for s in results.seeds}
    delta_seeds = {
        s: [[None if a == results.baseline else percent(results.delta(a, name, s)) for name in names] for a in arms]
        for s in results.seeds
    }
    seen = [[percent((results.pair(arm, name) or {}).get("mdd")) for name in names] for arm in arms]
    largest = max((value for row in seen for value in row if value is not None), default=1.0) or 1.0
    traces = [
        _map(results, "score", score, ".1f", {"scale": SEQUENTIAL, "zmin": 0, "zmax": 100}, score_seeds),
        _map(results, "delta", deltas, "+.1f", centred(deltas), delta_seeds),
        _map(results, "p", ps, ".3f", {"scale": P_VALUES, "zmin": 0, "zmax": 1}, None),
        _map(results, "mdd", seen, ".1f", {"scale": SEQUENTIAL, "zmin": 0, "zmax": largest}, None),
    ]
    caption = say(
        "Accuracy (%), difference from {baseline} in percentage points (scale centred at 0: blue better, orange worse), "
        "Holm-adjusted p, or the smallest difference (points) that a study like this finds with 80 % power: a smaller true difference "
        "would most likely be missed. Blank: missing, or the baseline itself.",
        baseline=results.baseline,
    )
    rows = [
        [arm, name, text(score[i][j]), text(deltas[i][j], sign=True), p_text(ps[i][j]), text(seen[i][j])]
        for i, arm in enumerate(arms)
        for j, name in enumerate(names)
    ]
    return Figure(
        "heatmap",
        "plots",
        "Arms × datasets",
        caption,
        traces,
        {"xaxis": ACROSS, "yaxis": DOWN, "margin": margin(120, 48)},
        ["Arm", "Dataset", "Accuracy (%)", "Δ (points)", "p (Holm)", "Smallest detectable Δ (points)"],
        rows,
        views=[("score", "Accuracy"), ("delta", "Δ to baseline"), ("p", "p (Holm)"), ("mdd", "Smallest detectable Δ")],
        height=max(260, 90 + 34 * len(arms)),
        stills=4,
    )


def _map(results: Results, view: str, z: list[list[Any]], form: str, scale: dict[str, Any], seeds: Any) -> Trace:
    filtered = {"by_seed": by_seed("z", seeds)} if seeds else {"all_seeds_only": True}
    return heatmap_trace(
        view,
        [tick(name) for name in results.columns],
        [label(arm) for arm in results.arms],
        z,
        **scale,
        texttemplate=f"%{{z:{form}}}",
        hovertemplate=f"%{{y}}<br>%{{x}}: %{{z:{form}}}<extra></extra>",
        meta={"view": view, "rows": {"arm": results.arms}, "columns": {"dataset": results.columns}, **filtered},
    )


def _cell_text(cell: dict[str, Any]) -> str:
    if number(cell.get("mean")) is None:
        return say("{status}: {reason}", status=cell["status"], reason=reason_of(cell))
    low, high = text(percent(cell["low"])), text(percent(cell["high"]))
    return f"{text(percent(cell['mean']))} [{low}, {high}], n {text(cell.get('n_items'), 0)} × {text(cell.get('n_seeds'), 0)}"


WORDS = ("win", "tie", "loss")
Known = dict[tuple[str, str, str], dict[Any, Any]]
AXES: dict[str, Any] = {"xaxis": ACROSS, "yaxis": DOWN, "margin": margin(120)}


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
            why = ((seed, _missing_reason(results, arm, seed, name)) for seed in gone)
            reasons = listed((say("seed {seed}: {reason}", seed=seed, reason=reason) for seed, reason in why), "; ")
            shown = [", ".join(map(str, group)) or "—" for group in (found, gone)]
            said = Quoting(reasons, chinese(reasons)) if reasons else "—"
            rows.append([arm, name, *shown, text(sizes.get((arm, name)), 0), said])
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
            | {"zmin": 0, "zmax": 1.6, "showscale": False}
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


def _missing_reason(results: Results, arm: str, seed: int, dataset: str) -> str:
    known = (results.cards.get("compare", {}).get("result") or {}).get("missing") or {}
    reason = str(known.get(f"{arm}/seed{seed}/{dataset}", "no scores file"))
    failed = reason.removeprefix("failed: ")
    return say("failed: {reason}", reason=failed) if failed != reason else reason


def _grid(
    z: list[list[Any]], words: list[list[str]], meta: dict[str, Any], columns: list[str], arms: list[str]
) -> Trace:
    return heatmap_trace(
        meta.get("view", "runs"),
        [tick(name) for name in columns],
        [label(arm) for arm in arms],
        z,
        SEQUENTIAL,
        text=[[label(word) for word in line] for line in words],
        texttemplate="%{text}",
        hovertemplate="%{y} · %{x}: %{text}<extra></extra>",
        meta={"rows": {"arm": arms}, "all_seeds_only": True, **meta},
    )
