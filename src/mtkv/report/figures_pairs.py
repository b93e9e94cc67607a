"""Differences from the baseline as pictures: a waterfall whose bars add up to the macro Δ, and a forest plot.

In: `Results`; out: `Figure`s in percentage points. The macro Δ is the mean of the datasets' Δ, so dataset d contributes Δ_d / D
and the D bars sum to it exactly.
"""

from mtkv.report.figure import Figure, Trace, by_seed, label, percent, text, tick
from mtkv.report.figures_forest import forest_figure, significance_note
from mtkv.report.palette import BETTER, NEUTRAL, WORSE
from mtkv.report.results import Results
from mtkv.report.strings import say

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
    """Arms with the one that most claims are about in front: named before the scores were known."""
    counts = results.claims["arm"].value_counts().to_dict() if len(results.claims) else {}
    return sorted((a for a in results.arms if a != results.baseline), key=lambda arm: -counts.get(arm, 0))
