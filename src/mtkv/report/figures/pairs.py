"""Paired differences as pictures: forest plots, and a waterfall whose bars add up to the macro Δ from the baseline.

In: `Results` and the pairs to draw. Out: `Figure`s in percentage points. In a forest plot filled marks are clear differences, hollow
ones are not; beside each stands its p and, where nothing is decided, the smallest detectable difference. The macro Δ is the mean of
the datasets' Δ, so dataset d contributes Δ_d / D and the D bars of the waterfall sum to it exactly.
"""

from typing import Any

from mtkv.report.figures.figure import (
    Figure,
    Trace,
    by_seed,
    clear,
    detectable,
    interval,
    label,
    outcome,
    p_text,
    percent,
    text,
    tick,
    verdict,
)
from mtkv.report.figures.palette import ACROSS, BETTER, NEUTRAL, WORSE, arm_styles, error_bars
from mtkv.report.results import MACRO, Results
from mtkv.report.strings import listed, say

TOTAL = "total"


def pair_figures(results: Results) -> list[Figure]:
    """The waterfall and the forest plot against the baseline."""
    return [waterfall(results), forest(results)]


def waterfall(results: Results) -> Figure:
    """One view per arm: each dataset's share of the macro Δ, and their sum."""
    arms = [arm for arm in _first(results) if _contributions(results, arm) is not None]
    traces, rows = [], []
    for arm in arms:
        shares = _contributions(results, arm) or []
        traces.append(_waterfall_trace(results, arm, shares))
        rows += [[arm, name, text(share, 2, sign=True)] for name, share in zip(results.datasets, shares, strict=True)]
        rows.append([arm, TOTAL, text(sum(shares), 2, sign=True)])
    missing = [arm for arm in results.arms if arm not in arms and arm != results.baseline]
    caption = say(
        "How much each dataset adds to an arm's macro difference from {baseline}: Δ of the dataset divided by {count}, in "
        "percentage points. The bars sum to the total macro Δ.",
        baseline=results.baseline,
        count=len(results.datasets),
    )
    if missing:
        caption += say(" Not shown, because a dataset is missing: {arms}.", arms=", ".join(missing))
    return Figure(
        "waterfall",
        "plots",
        "Where the difference comes from",
        caption,
        traces,
        {
            "xaxis": ACROSS,
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
    """Δ_d / D per dataset in points, or None when any dataset has no Δ."""
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
    pairs = [(arm, results.baseline) for arm in results.arms if arm != results.baseline]
    caption = say(
        "Paired difference from {baseline} in percentage points with its {confidence} interval, same items and prompts. Filled: a clear "
        "difference (the interval leaves out 0 and Holm's p is below {alpha}). Hollow: not; “sees ≥” is the smallest difference this "
        "study finds with 80 % power, so a hollow mark does not mean “no difference”.",
        baseline=results.baseline,
        confidence=f"{results.confidence:.0%}",
        alpha=f"{results.alpha:.2g}",
    ) + significance_note(results, pairs)
    return forest_figure(results, "forest", "plots", "Paired differences from the baseline", caption, pairs)


def _first(results: Results) -> list[str]:
    """All arms but the baseline; first the one that most claims are about, a choice that no score enters."""
    counts = results.claims["arm"].value_counts().to_dict() if len(results.claims) else {}
    return sorted((a for a in results.arms if a != results.baseline), key=lambda arm: -counts.get(arm, 0))


HEADER = [
    *("Dataset", "Arm", "Against", "Δ (points)", "Interval", "p", "p (Holm)", "Outcome", "n", "Seeds"),
    "Smallest detectable Δ (80 % power)",
]
Pairs = list[tuple[str, str]]


def forest_figure(results: Results, id: str, section: str, title: str, caption: str, pairs: Pairs) -> Figure:
    """Forest plot of (arm, other) `pairs`, one view per dataset, the macro average first."""
    names = [MACRO, *results.datasets]
    against = {other for _, other in pairs}
    traces = [trace for name in names for trace in _traces(results, pairs, name, len(against) > 1)]
    rows = [
        [name, arm, other, *pair_text(pair, results.alpha)]
        for name in names
        for arm, other in pairs
        if (pair := results.pair(arm, name, other)) is not None
    ]
    width = 8 * max((len(_row_name(arm, other, len(against) > 1)) for arm, other in pairs), default=12)
    return Figure(
        id,
        section,
        title,
        caption,
        traces,
        {
            "xaxis": {"title": {"text": "Δ accuracy (points)"}, "zeroline": True},
            # A second, invisible x axis from 0 to 1 holds the column of numbers at the right edge.
            "xaxis2": {"overlaying": "x", "range": [0, 1], "visible": False, "fixedrange": True},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
            "margin": {"l": min(260, max(120, width)), "r": 350, "t": 16, "b": 56},
            "showlegend": False,
        },
        HEADER,
        rows,
        views=[(name, name) for name in names],
        view_label="Dataset",
        height=max(240, 90 + 32 * len(pairs)),
    )


def significance_note(results: Results, pairs: Pairs) -> str:
    """Sentences for the caption: which macro differences are clear, and which are missing."""
    found = {(arm, other): results.pair(arm, MACRO, other) for arm, other in pairs}
    sure = [
        say("{arm} ({outcome})", arm=arm, outcome=outcome(pair, results.alpha))
        for (arm, _), pair in found.items()
        if clear(pair, results.alpha)
    ]
    gone = [arm for (arm, _), pair in found.items() if pair is None]
    clear_ones = say(" Clear macro differences: {arms}.", arms=listed(sure))
    note = clear_ones if sure else say(" No macro difference is clear.")
    return note + say(" Without a macro difference: {arms}.", arms=", ".join(gone)) if gone else note


def pair_text(pair: dict[str, Any], alpha: float) -> list[str]:
    """Δ, interval, p, Holm's p, outcome, n, seeds and the smallest detectable difference as text."""
    low, high = (text(percent(pair[side]), sign=True) for side in ("low", "high"))
    return [
        text(percent(pair["delta"]), sign=True),
        f"[{low}, {high}]",
        p_text(pair["p"]),
        p_text(pair["p_holm"]),
        outcome(pair, alpha),
        text(pair["n_items"], 0),
        text(pair["n_seeds"], 0),
        detectable(pair),
    ]


def _row_name(arm: str, other: str, several: bool) -> str:
    return f"{arm} − {other}" if several else arm


def _traces(results: Results, pairs: Pairs, name: str, several: bool) -> list[Trace]:
    styles = arm_styles(results.arms, results.trained, results.baseline)
    known = [(arm, other, pair) for arm, other in pairs if (pair := results.pair(arm, name, other)) is not None]
    if not known:
        return []
    arms = [arm for arm, _, _ in known]
    y = [label(_row_name(arm, other, several)) for arm, other, _ in known]
    whiskers = [interval(pair["low"], pair["high"], pair["delta"]) for _, _, pair in known]
    colors = [styles[arm].color for arm in arms]
    filled = [styles[arm].color if clear(pair, results.alpha) else "#ffffff" for arm, _, pair in known]
    meta = {"view": name, "points": {"arm": arms}, **({} if name == MACRO else {"dataset": name})}
    seeds = {s: [percent(results.delta(arm, name, s, other)) for arm, other, _ in known] for s in results.seeds}
    points: Trace = {
        "type": "scatter",
        "mode": "markers",
        "name": label(name),
        "x": [percent(pair["delta"]) for _, _, pair in known],
        "y": y,
        "error_x": error_bars(whiskers, 1.6, 4),
        "marker": {"size": 10, "color": filled, "line": {"width": 2, "color": colors}},
        "hovertemplate": "%{y}: %{x:+.1f} points<extra></extra>",
        "meta": meta | {"by_seed": by_seed("x", seeds)},
    }
    numbers: Trace = {
        "type": "scatter",
        "mode": "text",
        "x": [1] * len(known),
        "xaxis": "x2",
        "y": y,
        "text": [label(_beside(pair, results.alpha)) for _, _, pair in known],
        "textposition": "middle right",
        "hoverinfo": "skip",
        "cliponaxis": False,
        "meta": meta | {"all_seeds_only": True},
    }
    return [points, numbers]


def _beside(pair: dict[str, Any], alpha: float) -> str:
    delta, limits, _, holm, *_ = pair_text(pair, alpha)
    p = holm if holm.startswith("<") else f"= {holm}"
    return say("{delta} {limits}  p {p}  {verdict}", delta=delta, limits=limits, p=p, verdict=verdict(pair, alpha))
