"""Panels with two axes of the still pictures, between the margins that their labels need.

In: a `Frame` (a drawing with the traces and layout of one view). The column of numbers beside a forest plot is in the figure's table.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from mtkv.report.axes import (
    GAP,
    LINE,
    SIZE,
    TICK,
    ZERO,
    Scale,
    draw_frame,
    draw_grid,
    draw_titles,
    limits,
    lines_of,
    widest,
)
from mtkv.report.drawing import Drawing
from mtkv.report.figure import Trace
from mtkv.report.fonts import Font
from mtkv.report.marks import plain
from mtkv.report.traces import DRAWERS, Axes, levels, seeds, whiskers

Panel = tuple[str, str]


class Frame(NamedTuple):
    """What is drawn, and the height above which it is."""

    drawing: Drawing
    font: Font
    traces: list[Trace]
    layout: dict[str, Any]
    height: float


def draw_panels(frame: Frame) -> None:
    """The panels below each other where they have different y axes, else beside each other."""
    panels = sorted({_panel(trace) for trace in frame.traces if trace.get("xaxis") != "x2" or trace["type"] == "bar"})
    stacked = len({y for _, y in panels}) > 1
    width, height = frame.drawing.width, frame.height
    for i, panel in enumerate(panels):
        share = [k / len(panels) for k in (i, i + 1)]
        left, right = (0.0, width) if stacked else (share[0] * width, share[1] * width)
        top, bottom = (share[0] * height, share[1] * height) if stacked else (0.0, height)
        _draw_panel(frame, [t for t in frame.traces if _panel(t) == panel], panel, (left, top, right, bottom))


def _panel(trace: Trace) -> Panel:
    return trace.get("xaxis", "x"), trace.get("yaxis", "y")


def _draw_panel(frame: Frame, traces: list[Trace], panel: Panel, box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = box
    layouts = [frame.layout.get(name[0] + "axis" + name[1:], {}) for name in panel]
    titles = tuple(layout.get("title", {}).get("text", "") for layout in layouts)
    names = [_names(traces, axis) for axis in "xy"]
    ranges = [_range(traces, axis, known, layout) for axis, known, layout in zip("xy", names, layouts, strict=True)]
    start = left + GAP + (1.3 * LINE if titles[1] else 0.0)
    margin = TICK + 2 * GAP + (widest(names[1], frame.font) if names[1] else 4 * SIZE)
    slot = (right - start - margin) / max(1, len(names[0]))
    slanted = bool(names[0]) and widest(names[0], frame.font) > slot
    label = 0.87 * widest([n.replace("\n", "") for n in names[0]], frame.font) if slanted else lines_of(names[0]) * LINE
    base = bottom - GAP - TICK - GAP - label - (1.3 * LINE if titles[0] else 0.0)
    ends = (
        (top + GAP, base)
        if traces[0]["type"] == "heatmap" or layouts[1].get("autorange") == "reversed"
        else (base, top + GAP)
    )
    y = Scale(*ranges[1], *ends, names[1], layouts[1].get("dtick", 0.0))
    if not names[1]:
        margin = TICK + 2 * GAP + widest([shown for _, shown in y.marks()], frame.font)
    x = Scale(*ranges[0], start + margin, right - 4 * GAP, names[0], layouts[0].get("dtick", 0.0))
    grid = "" if traces[0]["type"] == "heatmap" else "x" if layouts[1].get("type") == "category" else "y"
    draw_grid(frame.drawing, x, y, grid)
    for trace in traces:
        DRAWERS[trace["type"]](Axes(frame.drawing, x, y, traces), trace)
    if layouts[0].get("zeroline") and x.low < 0 < x.high:
        frame.drawing.line([(x(0), y.start), (x(0), y.end)], ZERO)
    draw_frame(frame.drawing, x, y, bool(grid), slanted)
    draw_titles(frame.drawing, x, y, (titles[0], titles[1]), bottom - GAP - 2, left + GAP + SIZE)


def _names(traces: list[Trace], axis: str) -> tuple[str, ...]:
    """The names along an axis, in their order; none where it has numbers."""
    found = dict.fromkeys(plain(value) for trace in traces for value in trace[axis] if isinstance(value, str))
    return tuple(found)


def _range(traces: list[Trace], axis: str, names: tuple[str, ...], layout: dict[str, Any]) -> tuple[float, float]:
    if names:
        room = 0.5 if traces[0]["type"] in ("heatmap", "scatter") else 0.6
        return -room, len(names) - 1 + room
    bars = any(trace["type"] in ("bar", "waterfall") for trace in traces)
    return limits((value for trace in traces for value in _values(trace, axis)), bars, layout.get("range"))


def _values(trace: Trace, axis: str) -> Iterator[float | None]:
    """Everything a trace shows along an axis of numbers."""
    if trace["type"] == "waterfall":
        yield from levels(trace)
        return
    yield from trace[axis]
    if f"error_{axis}" in trace:
        yield from (low for low, _ in whiskers(trace, axis))
        yield from (high for _, high in whiskers(trace, axis))
    if axis == "y":
        yield from (value for values in seeds(trace) for value in values)
