"""Where KV helps: each way of moving knowledge through KV beside the others, its gain over the arm without KV and over its control twin.

In: `Results` with the study's transfers (`mtkv.stats.transfers`). Out: a forest plot of two differences per arm, whose table names the
kind of transfer; where `mtkv gate` was asked about arms, what it said of them beside what they gained.
"""

from mtkv.report.figures.figure import Figure, by_seed, interval, label, percent, text
from mtkv.report.figures.pairs import Pairs, forest_figure, significance_note
from mtkv.report.figures.palette import arm_styles, error_bars
from mtkv.report.results import MACRO, Results
from mtkv.report.strings import listed, say


def where_figures(results: Results) -> list[Figure]:
    """The forest plot, nothing in a study without an arm that has a twin; and the gate's figure."""
    pairs = where_pairs(results)
    return [*([where_figure(results, pairs)] if pairs else []), *gate_figures(results)]


def where_figure(results: Results, pairs: Pairs) -> Figure:
    """The forest plot of `pairs`."""
    caption = say(
        "Every arm with teachers' KV that has a control twin: its gain over the arm that differs in nothing but the KV (or else the "
        "baseline), and over the twin, whose KV have the wrong content. KV helps where both are above 0: the first alone may be a "
        "regulariser's, the second alone harm done to the twin. Paired on the same items; filled: a clear difference."
    )
    alone = [one.arm for one in results.transfers if not one.twin]
    if alone:
        caption += say(" Without a twin, and so not here: {arms}.", arms=", ".join(alone))
    caption += significance_note(results, pairs)
    figure = forest_figure(results, "where", "where", "Gain over no KV and over the control twin", caption, pairs)
    kinds = {one.arm: listed([say(kind) for kind in one.kinds]) for one in results.transfers}
    twins = {(one.arm, one.twin) for one in results.transfers}
    figure.header = [*figure.header, "Kind of transfer", "Gain over"]
    figure.rows = [
        [*row, kinds[row[1]], "its control twin" if (row[1], row[2]) in twins else "no KV"] for row in figure.rows
    ]
    return figure


def where_pairs(results: Results) -> list[tuple[str, str]]:
    """(arm, arm without KV) and (arm, twin) for every transfer that has a twin."""
    return [(one.arm, other) for one in results.transfers if one.twin for other in (one.without, one.twin)]


def gate_figures(results: Results) -> list[Figure]:
    """What the gate said of each arm before its training, and the arm's gain over the arm without KV; nothing without such an arm."""
    gains = {
        one.arm: (one.without, pair)
        for one in results.transfers
        if one.arm in results.gates and (pair := results.pair(one.arm, MACRO, one.without)) is not None
    }
    if not gains:
        return []
    styles, arms = arm_styles(results.arms, results.trained, results.baseline), list(gains)
    gates = [results.gates[arm] for arm in arms]
    colors = [styles[arm].color for arm in arms]
    deltas = [percent(pair["delta"]) for _, pair in gains.values()]
    limits = [[text(percent(pair[side]), sign=True) for side in ("low", "high")] for _, pair in gains.values()]
    seeds = {
        s: [percent(results.delta(arm, MACRO, s, without)) for arm, (without, _) in gains.items()]
        for s in results.seeds
    }
    caption = say(
        "Across: cos(∂CE, ∂KV) on the untrained student's weights with the right row's KV minus that with another row's, ± one standard "
        "error over batches. Up: the gain over the arm that differs in nothing but the KV (or else the baseline), macro average, with its "
        "{confidence} interval. Measured by mtkv gate, which no report asks anew.",
        confidence=f"{results.confidence:.0%}",
    )
    if near := [arm for arm, gate in zip(arms, gates, strict=True) if abs(gate.difference) <= 2 * gate.error]:
        caption += say(" Within two errors of 0: {arms}.", arms=", ".join(near))
    trace = {
        "type": "scatter",
        "mode": "markers+text",
        "name": "gate",
        "x": [gate.difference for gate in gates],
        "y": deltas,
        "text": [label(arm) for arm in arms],
        "textposition": "top right",
        "error_x": error_bars([(gate.error, gate.error) for gate in gates], 1.6, 4),
        "error_y": error_bars(
            [interval(pair["low"], pair["high"], pair["delta"]) for _, pair in gains.values()], 1.6, 4
        ),
        "marker": {"size": 10, "color": colors, "line": {"width": 2, "color": colors}},
        "hovertemplate": "%{text}: %{x:+.3f}, %{y:+.1f} points<extra></extra>",
        "meta": {"points": {"arm": arms}, "by_seed": by_seed("y", seeds)},
    }
    layout = {
        "xaxis": {"title": {"text": "Cosine with the right row's KV minus that with another's"}, "zeroline": True},
        "yaxis": {"title": {"text": "Gain over no KV (points)"}, "zeroline": True},
        "showlegend": False,
    }
    rows = [
        [
            arm,
            text(gate.difference, 3, sign=True),
            text(gate.error, 3),
            text(delta, sign=True),
            f"[{low}, {high}]",
            without,
        ]
        for arm, gate, delta, (low, high), (without, _) in zip(arms, gates, deltas, limits, gains.values(), strict=True)
    ]
    header = ["Arm", "Cosine difference", "Standard error", "Δ (points)", "Interval", "Gain over"]
    return [Figure("gate", "where", "The gate and the gain", caption, [trace], layout, header, rows)]
