"""Traces of the still pictures on their axes: bars, lines, dots with whiskers, maps and waterfalls, as plotly draws them.

In: `Axes` of a panel and a trace. Out: parts of the panel's drawing.
"""

import re
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from mtkv.report.axes import GAP, SIZE, ZERO, Scale
from mtkv.report.drawing import INK, Circle, Drawing, Point
from mtkv.report.figure import Trace
from mtkv.report.marks import draw_bar, draw_line, line_color, line_width, plain

WHISKER = "#22262B"


class Axes(NamedTuple):
    """One panel's scales and the traces of its figure."""

    drawing: Drawing
    x: Scale
    y: Scale
    traces: list[Trace]


def whiskers(trace: Trace, axis: str) -> list[tuple[float | None, float | None]]:
    """Both ends of the whisker of every value."""
    error = trace[f"error_{axis}"]
    ends = zip(trace[axis], error["arrayminus"], error["array"], strict=True)
    return [(None, None) if None in end else (end[0] - end[1], end[0] + end[2]) for end in ends]


def seeds(trace: Trace) -> list[list[float | None]]:
    """The lines of the seeds between which a band is drawn."""
    known = trace["meta"].get("by_seed", {})
    return list(known["seeds"].values()) if known.get("band") and len(known["seeds"]) > 1 else []


def _bar(axes: Axes, trace: Trace) -> None:
    drawing, x, y = axes.drawing, axes.x, axes.y
    if trace.get("orientation") == "h":
        thick = 0.65 * abs(y(1) - y(0))
        for name, value, color in zip(trace["y"], trace["x"], trace["marker"]["color"], strict=True):
            if value is not None:
                drawing.box(x(0), y(plain(name)) - thick / 2, x(value) - x(0), thick, color)
        return
    offset, width = _slot(axes, trace)
    for name, value in zip(trace["x"], trace["y"], strict=True):
        if value is not None:
            draw_bar(drawing, x(plain(name)) + offset - width / 2, y(0), width, y(value) - y(0), trace["marker"])
    for name, (low, high) in zip(trace["x"], whiskers(trace, "y") if "error_y" in trace else [], strict=False):
        if low is not None and high is not None:
            place = x(plain(name)) + offset
            drawing.line([(place, y(low)), (place, y(high))], WHISKER, 0.8)
            for end in (low, high):
                drawing.line([(place - 1.5, y(end)), (place + 1.5, y(end))], WHISKER, 0.8)


def _slot(axes: Axes, trace: Trace) -> tuple[float, float]:
    """Offset and width of a trace's bars inside their group, in points."""
    groups = list(dict.fromkeys(t["offsetgroup"] for t in axes.traces if t["type"] == "bar" and "offsetgroup" in t))
    width = 0.82 / max(1, len(groups)) * (axes.x(1) - axes.x(0))
    return (groups.index(trace["offsetgroup"]) - (len(groups) - 1) / 2) * width, width


def _scatter(axes: Axes, trace: Trace) -> None:
    x, y = axes.x, axes.y
    pairs = zip(trace["x"], trace["y"], strict=True)
    points: list[Point | None] = [None if None in pair else (_place(x, pair[0]), _place(y, pair[1])) for pair in pairs]
    if "offsetgroup" in trace:  # the seed dots of grouped bars
        offset, _ = _slot(axes, trace)
        axes.drawing.parts += [
            Circle(p[0] + offset, p[1], 1.2, WHISKER, "#ffffff", 0.5) for p in points if p is not None
        ]
    elif "error_x" in trace:
        _dots_with_whiskers(axes, trace, points)
    else:
        _band(axes, trace)
        draw_line(axes.drawing, points, trace, line_width(trace))


def _place(scale: Scale, value: Any) -> float:
    return scale(plain(value) if isinstance(value, str) else value)


def _band(axes: Axes, trace: Trace) -> None:
    if not (lines := seeds(trace)):
        return
    known = [[value for value in column if value is not None] for column in zip(*lines, strict=True)]
    edges = [(axes.x(x), axes.y(min(v)), axes.y(max(v))) for x, v in zip(trace["x"], known, strict=True) if v]
    outline = [(x, low) for x, low, _ in edges] + [(x, high) for x, _, high in reversed(edges)]
    if len(edges) > 1:
        axes.drawing.area(outline, line_color(trace), opacity=0.15)


def _dots_with_whiskers(axes: Axes, trace: Trace, points: list[Point | None]) -> None:
    marker = trace["marker"]
    parts = zip(points, whiskers(trace, "x"), marker["color"], marker["line"]["color"], strict=True)
    for point, (low, high), face, edge in parts:
        if point is None:
            continue
        y = point[1]
        if low is not None and high is not None:
            axes.drawing.line([(axes.x(low), y), (axes.x(high), y)], edge, 1.5)
            for end in (low, high):
                axes.drawing.line([(axes.x(end), y - 3), (axes.x(end), y + 3)], edge)
        axes.drawing.parts.append(Circle(*point, 3.0, edge, face))


def _heatmap(axes: Axes, trace: Trace) -> None:
    x, y = axes.x, axes.y
    width, height = x(1) - x(0), y(1) - y(0)
    color = trace.get("textfont", {}).get("color", INK)
    for i, line in enumerate(trace["z"]):
        for j, value in enumerate(line):
            if value is None:
                continue
            fill = shade(trace["colorscale"], (value - trace["zmin"]) / (trace["zmax"] - trace["zmin"]))
            axes.drawing.box(x(j) - width / 2, y(i) - height / 2, width, height, fill, "#ffffff")
            if shown := _cell_text(trace, i, j):
                axes.drawing.text(x(j), y(i) + SIZE * 0.36, shown, 0.5, color=color)


def shade(scale: list[Any], share: float) -> str:
    """The colour at `share` (0..1, cut at both ends) of plotly's [[place, "#rrggbb"], …]."""
    share = min(1.0, max(0.0, share))
    after = next(i for i, (place, _) in enumerate(scale) if place >= share)
    (low, first), (high, last) = scale[max(0, after - 1)], scale[after]
    part = (share - low) / (high - low) if high > low else 1.0
    mixed = (int(first[i : i + 2], 16) * (1 - part) + int(last[i : i + 2], 16) * part for i in (1, 3, 5))
    return "#" + "".join(f"{round(channel):02x}" for channel in mixed)


def _cell_text(trace: Trace, i: int, j: int) -> str:
    """What plotly writes into a cell by `texttemplate`: the cell's text, its number, or nothing."""
    template = trace.get("texttemplate", "")
    if "%{text}" in template:
        return plain(trace["text"][i][j])
    found = re.search(r"%\{z:([^}]*)\}", template)
    return f"{trace['z'][i][j]:{found[1]}}" if found else ""


def levels(trace: Trace) -> list[float]:
    """0 and the sums after each step of a waterfall."""
    return list(accumulate((value for value in trace["y"] if value is not None), initial=0.0))


def _waterfall(axes: Axes, trace: Trace) -> None:
    x, y, sums = axes.x, axes.y, levels(trace)
    kinds = ["increasing" if after >= before else "decreasing" for before, after in pairwise(sums)]
    bars = [*zip(sums, sums[1:], kinds, strict=False), (0.0, sums[-1], "totals")]
    width = 0.7 * (x(1) - x(0))
    for i, (before, after, kind) in enumerate(bars):
        axes.drawing.box(x(i) - width / 2, y(before), width, y(after) - y(before), trace[kind]["marker"]["color"])
        top = min(y(before), y(after))
        axes.drawing.text(x(i), top - GAP, f"{after - before:+.2f}", 0.5)
    axes.drawing.line([(x.start, y(0)), (x.end, y(0))], ZERO)


DRAWERS: dict[str, Callable[[Axes, Trace], None]] = {
    "bar": _bar,
    "scatter": _scatter,
    "heatmap": _heatmap,
    "waterfall": _waterfall,
}
