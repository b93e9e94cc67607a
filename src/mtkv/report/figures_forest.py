"""Forest plots: paired differences with their intervals, Holm's p and what could have been seen; one view per dataset.

In: `Results` and the pairs to draw. Out: a `Figure` in percentage points. Filled marks are clear differences, hollow ones are not;
beside each stands its p and, where nothing is decided, the smallest detectable difference.
"""

from typing import Any

from mtkv.report.figure import Figure, Trace, by_seed, interval, label, p_text, percent, text
from mtkv.report.outcomes import clear, detectable, outcome, verdict
from mtkv.report.palette import arm_styles
from mtkv.report.results import MACRO, Results
from mtkv.report.strings import listed, say

HEADER = [
    "Dataset",
    "Arm",
    "Against",
    "Δ (points)",
    "Interval",
    "p",
    "p (Holm)",
    "Outcome",
    "n",
    "Seeds",
    "Smallest detectable Δ (80 % power)",
]
Pairs = list[tuple[str, str]]


def forest_figure(results: Results, id: str, section: str, title: str, caption: str, pairs: Pairs) -> Figure:
    """Forest plot of (arm, other) `pairs`, the macro average first."""
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
    """Which macro differences are clear, which are not, and which are not there."""
    found = {(arm, other): results.pair(arm, MACRO, other) for arm, other in pairs}
    sure = [
        say("{arm} ({outcome})", arm=arm, outcome=outcome(pair, results.alpha))
        for (arm, _), pair in found.items()
        if clear(pair, results.alpha)
    ]
    gone = [arm for (arm, _), pair in found.items() if pair is None]
    note = (
        say(" Clear macro differences: {arms}.", arms=listed(sure)) if sure else say(" No macro difference is clear.")
    )
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
    meta = {"view": name, "points": {"arm": arms}, **({} if name == MACRO else {"dataset": name})}
    seeds = {s: [percent(results.delta(arm, name, s, other)) for arm, other, _ in known] for s in results.seeds}
    points: Trace = {
        "type": "scatter",
        "mode": "markers",
        "name": label(name),
        "x": [percent(pair["delta"]) for _, _, pair in known],
        "y": y,
        "error_x": {
            "type": "data",
            "array": [high for _, high in whiskers],
            "arrayminus": [low for low, _ in whiskers],
            "thickness": 1.6,
            "width": 4,
        },
        "marker": {
            "size": 10,
            "color": [
                c if clear(pair, results.alpha) else "#ffffff" for c, (_, _, pair) in zip(colors, known, strict=True)
            ],
            "line": {"width": 2, "color": colors},
        },
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
