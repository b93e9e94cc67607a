"""Differences from the baseline as pictures: a waterfall whose bars add up to the macro Δ, and a forest plot.

In: `Results`; out: `Figure`s in percentage points. The macro Δ is the mean of the datasets' Δ, so dataset d contributes Δ_d / D
and the D bars sum to it exactly.
"""

from typing import Any

from mtkv.report.figure import Figure, Trace, by_seed, interval, label, number, p_text, percent, text, tick
from mtkv.report.palette import BETTER, NEUTRAL, WORSE, arm_styles
from mtkv.report.results import MACRO, Results

TOTAL = "total"


def pair_figures(results: Results) -> list[Figure]:
    """Waterfall and forest plot."""
    return [waterfall(results), forest(results)]


def waterfall(results: Results) -> Figure:
    """One view per arm: the datasets' shares of the macro Δ and their sum."""
    arms = [arm for arm in _first(results) if _contributions(results, arm) is not None]
    traces, rows = [], []
    for arm in arms:
        shares = _contributions(results, arm) or []
        traces.append(_waterfall_trace(results, arm, shares))
        rows += [[arm, name, text(share, 2, sign=True)] for name, share in zip(results.datasets, shares, strict=True)]
        rows.append([arm, TOTAL, text(sum(shares), 2, sign=True)])
    missing = [arm for arm in results.arms if arm not in arms and arm != results.baseline]
    caption = (
        f"How much each dataset adds to an arm's macro difference from {results.baseline}: Δ of the dataset divided by "
        f"{len(results.datasets)}, in percentage points. The bars sum to the total macro Δ. "
        + (f"Not shown, because a dataset is missing: {', '.join(missing)}." if missing else "")
    )
    return Figure(
        "waterfall",
        "plots",
        "Where the difference comes from",
        caption.strip(),
        traces,
        {
            "xaxis": {"type": "category", "showgrid": False, "tickangle": 0},
            "yaxis": {"title": {"text": "Contribution to macro Δ (points)"}, "zeroline": True},
            "showlegend": False,
        },
        ["Arm", "Dataset", "Contribution (points)"],
        rows,
        views=[(arm, arm) for arm in arms],
        view_label="Arm",
        height=400,
    )


def _contributions(results: Results, arm: str) -> list[float] | None:
    """Δ_d / D per dataset in points, or None when a dataset has no Δ."""
    deltas = [percent((results.pair(arm, name) or {}).get("delta")) for name in results.datasets]
    return None if None in deltas else [delta / len(deltas) for delta in deltas if delta is not None]


def _waterfall_trace(results: Results, arm: str, shares: list[float]) -> Trace:
    names, total = results.datasets, len(results.datasets)
    seeds = {}
    for seed in results.seeds:
        deltas = [percent(results.delta(arm, name, seed)) for name in names]
        seeds[seed] = [None if delta is None else delta / total for delta in deltas] + [None]
    return {
        "type": "waterfall",
        "name": label(arm),
        "x": [*(tick(name) for name in names), TOTAL],
        "y": [*shares, None],
        "measure": ["relative"] * total + ["total"],
        "increasing": {"marker": {"color": BETTER}},
        "decreasing": {"marker": {"color": WORSE}},
        "totals": {"marker": {"color": NEUTRAL}},
        "connector": {"line": {"color": NEUTRAL, "width": 1, "dash": "dot"}},
        "texttemplate": "%{delta:+.2f}",
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{x}: %{delta:+.2f} points<extra></extra>",
        "meta": {
            "view": arm,
            "arm": arm,
            "points": {"dataset": [*names, None]},
            "by_seed": by_seed("y", seeds),
            "rest": "hidden datasets",
        },
    }


def forest(results: Results) -> Figure:
    """Paired Δ of every arm against the baseline with interval and Holm p; one view per dataset, the macro average first."""
    styles = arm_styles(results.arms, results.trained, results.baseline)
    names = [MACRO, *results.datasets]
    arms = [arm for arm in results.arms if arm != results.baseline]
    traces: list[Trace] = []
    for name in names:
        traces += _forest_traces(results, arms, name, [styles[arm].color for arm in arms])
    rows = []
    for name in names:
        for arm in arms:
            if (pair := results.pair(arm, name)) is not None:
                rows.append([name, arm, *_pair_text(pair)])
    significant = [
        a
        for a in arms
        if (number((results.pair(a, MACRO) or {}).get("p_holm")) or 0.0) < 0.05 and results.pair(a, MACRO)
    ]
    gone = [arm for arm in arms if results.pair(arm, MACRO) is None]
    caption = (
        f"Paired difference from {results.baseline} in percentage points with its {results.confidence:.0%} interval, same items and "
        "prompts. Filled: Holm-adjusted p < 0.05; hollow: not. "
        + (
            f"Macro differences with p < 0.05: {', '.join(significant)}."
            if significant
            else "No macro difference has p < 0.05."
        )
        + (f" Without a macro difference: {', '.join(gone)}." if gone else "")
    )
    return Figure(
        "forest",
        "plots",
        "Paired differences from the baseline",
        caption,
        traces,
        {
            "xaxis": {"title": {"text": "Δ accuracy (points)"}, "zeroline": True},
            # A second, invisible x axis from 0 to 1 holds the column of numbers at the right edge.
            "xaxis2": {"overlaying": "x", "range": [0, 1], "visible": False, "fixedrange": True},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
            "margin": {"l": 120, "r": 290, "t": 16, "b": 56},
            "showlegend": False,
        },
        [
            "Dataset",
            "Arm",
            "Δ (points)",
            "95 % interval" if results.confidence == 0.95 else "Interval",
            "p",
            "p (Holm)",
            "n",
            "Smallest detectable Δ (80 % power)",
        ],
        rows,
        views=[(name, name) for name in names],
        view_label="Dataset",
        height=max(240, 90 + 32 * len(arms)),
    )


def _forest_traces(results: Results, arms: list[str], name: str, colors: list[str]) -> list[Trace]:
    pairs = [(arm, color, pair) for arm, color in zip(arms, colors, strict=True) if (pair := results.pair(arm, name))]
    shown = [arm for arm, _, _ in pairs]
    deltas = [percent(pair["delta"]) for _, _, pair in pairs]
    whiskers = [interval(pair["low"], pair["high"], pair["delta"]) for _, _, pair in pairs]
    sure = [(number(pair["p_holm"]) if number(pair["p_holm"]) is not None else 1.0) for _, _, pair in pairs]
    meta = {"view": name, "points": {"arm": shown}, **({} if name == MACRO else {"dataset": name})}
    seeds = {s: [percent(results.delta(arm, name, s)) for arm in shown] for s in results.seeds}
    points: Trace = {
        "type": "scatter",
        "mode": "markers",
        "name": label(name),
        "x": deltas,
        "y": [label(arm) for arm in shown],
        "error_x": {
            "type": "data",
            "array": [high for _, high in whiskers],
            "arrayminus": [low for low, _ in whiskers],
            "thickness": 1.6,
            "width": 4,
        },
        "marker": {
            "size": 10,
            "color": [c if p is not None and p < 0.05 else "#ffffff" for (_, c, _), p in zip(pairs, sure, strict=True)],
            "line": {"width": 2, "color": [color for _, color, _ in pairs]},
        },
        "hovertemplate": "%{y}: %{x:+.1f} points<extra></extra>",
        "meta": meta | {"by_seed": by_seed("x", seeds)},
    }
    return [points, _forest_labels(shown, pairs, meta)]


def _forest_labels(shown: list[str], pairs: list[tuple[str, str, dict[str, Any]]], meta: dict[str, Any]) -> Trace:
    texts = []
    for _, _, pair in pairs:
        delta, limits, _, holm, *_ = _pair_text(pair)
        texts.append(f"{delta} {limits}  p {holm if holm.startswith('<') else '= ' + holm}")
    return {
        "type": "scatter",
        "mode": "text",
        "x": [1] * len(shown),
        "xaxis": "x2",
        "y": [label(arm) for arm in shown],
        "text": [label(text) for text in texts],
        "textposition": "middle right",
        "hoverinfo": "skip",
        "cliponaxis": False,
        "meta": meta | {"all_seeds_only": True},
    }


def _pair_text(pair: dict[str, Any]) -> list[str]:
    low, high = text(percent(pair["low"]), sign=True), text(percent(pair["high"]), sign=True)
    return [
        text(percent(pair["delta"]), sign=True),
        f"[{low}, {high}]",
        p_text(pair["p"]),
        p_text(pair["p_holm"]),
        str(int(pair["n_items"])) if number(pair["n_items"]) is not None else "—",
        text(percent(pair["mdd"])),
    ]


def _first(results: Results) -> list[str]:
    """Arms with the one that most claims are about in front: named before the scores were known."""
    counts = results.claims["arm"].value_counts().to_dict() if len(results.claims) else {}
    return sorted((a for a in results.arms if a != results.baseline), key=lambda arm: -counts.get(arm, 0))
