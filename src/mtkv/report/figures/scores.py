"""Accuracies as pictures: grouped bars with whiskers and seed dots, a radar over the datasets, a heatmap of arms × datasets.

In: `Results`; out: `Figure`s in percent. Whiskers are the cells' confidence intervals; dots are single seeds.
"""

from typing import Any

from mtkv.report.figures.figure import (
    Figure,
    Trace,
    by_seed,
    error_bars,
    interval,
    label,
    number,
    p_text,
    percent,
    text,
    tick,
)
from mtkv.report.figures.palette import CELL_TEXT, DIVERGING, P_VALUES, SEQUENTIAL, ArmStyle, arm_styles
from mtkv.report.results import MACRO, Results, reason_of
from mtkv.report.strings import say


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
            "xaxis": {"type": "category", "showgrid": False, "tickangle": 0},
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
                "line": {
                    "color": styles[arm].color,
                    "width": 1.5 if reference else 2.2,
                    "dash": "dot" if reference else styles[arm].dash,
                },
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
    bound = max((abs(value) for row in deltas for value in row if value is not None), default=1.0) or 1.0
    largest = max((value for row in seen for value in row if value is not None), default=1.0) or 1.0
    traces = [
        _map(results, "score", score, ".1f", {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": 100}, score_seeds),
        _map(
            results,
            "delta",
            deltas,
            "+.1f",
            {"colorscale": DIVERGING, "zmin": -bound, "zmax": bound, "zmid": 0},
            delta_seeds,
        ),
        _map(results, "p", ps, ".3f", {"colorscale": P_VALUES, "zmin": 0, "zmax": 1}, None),
        _map(results, "mdd", seen, ".1f", {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": largest}, None),
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
        {
            "xaxis": {"type": "category", "showgrid": False, "tickangle": 0},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False},
            "margin": {"l": 120, "r": 24, "t": 16, "b": 48},
        },
        ["Arm", "Dataset", "Accuracy (%)", "Δ (points)", "p (Holm)", "Smallest detectable Δ (points)"],
        rows,
        views=[("score", "Accuracy"), ("delta", "Δ to baseline"), ("p", "p (Holm)"), ("mdd", "Smallest detectable Δ")],
        height=max(260, 90 + 34 * len(arms)),
        stills=4,
    )


def _map(results: Results, view: str, z: list[list[Any]], form: str, scale: dict[str, Any], seeds: Any) -> Trace:
    return {
        "type": "heatmap",
        "name": view,
        "x": [tick(name) for name in results.columns],
        "y": [label(arm) for arm in results.arms],
        "z": z,
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "texttemplate": f"%{{z:{form}}}",
        "textfont": CELL_TEXT,
        "hovertemplate": f"%{{y}}<br>%{{x}}: %{{z:{form}}}<extra></extra>",
        "colorbar": {"thickness": 12, "outlinewidth": 0},
        "meta": {
            "view": view,
            "rows": {"arm": results.arms},
            "columns": {"dataset": results.columns},
            **({"by_seed": by_seed("z", seeds)} if seeds else {"all_seeds_only": True}),
        },
        **scale,
    }


def _cell_text(cell: dict[str, Any]) -> str:
    if number(cell.get("mean")) is None:
        return say("{status}: {reason}", status=cell["status"], reason=reason_of(cell))
    low, high = text(percent(cell["low"])), text(percent(cell["high"]))
    return f"{text(percent(cell['mean']))} [{low}, {high}], n {text(cell.get('n_items'), 0)} × {text(cell.get('n_seeds'), 0)}"
