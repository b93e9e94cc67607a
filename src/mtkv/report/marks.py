"""Marks of the still pictures: plotly's symbols, dashes and hatches as lines and areas."""

import html
import math
from collections.abc import Sequence
from typing import Any

from mtkv.report.drawing import Circle, Drawing, Point
from mtkv.report.figure import Trace

# Lengths of lines and gaps, in line widths.
DASHES = {
    "solid": (),
    "dash": (3.7, 1.6),
    "dot": (1.0, 1.65),
    "dashdot": (6.4, 1.6, 1.0, 1.6),
    "longdash": (8.0, 3.0),
}
SQUARE = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
CROSS = [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]


def _turned(points: Sequence[Point], angle: float, size: float) -> list[Point]:
    cos, sin = math.cos(angle) * size, math.sin(angle) * size
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in points]


def _star() -> list[Point]:
    angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
    return [
        (math.cos(a) * (0.45 if i % 2 else 1.15), math.sin(a) * (0.45 if i % 2 else 1.15)) for i, a in enumerate(angles)
    ]


SYMBOLS: dict[str, list[Point]] = {
    "square": _turned(SQUARE, 0, 0.9),
    "diamond": _turned(SQUARE, math.pi / 4, 0.9),
    "triangle-up": [(-1.0, 0.9), (0.0, -1.1), (1.0, 0.9)],
    "x": _turned(CROSS, math.pi / 4, 1 / 3),
    "cross": _turned(CROSS, 0, 1 / 3),
    "star": _star(),
}


def plain(label: str) -> str:
    """Plotly's label without its markup."""
    return html.unescape(label.replace("<br>", "\n"))


def draw_symbol(drawing: Drawing, x: float, y: float, symbol: str, color: str, radius: float) -> None:
    """One mark of a line."""
    if symbol in SYMBOLS:
        drawing.area([(x + dx * radius, y + dy * radius) for dx, dy in SYMBOLS[symbol]], color)
    else:
        drawing.parts.append(Circle(x, y, radius, fill=color))


def draw_line(drawing: Drawing, points: list[Point | None], trace: Trace, width: float) -> None:
    """A line through known points, broken at None, with the trace's marks where it has some."""
    line, marker, color = trace.get("line", {}), trace.get("marker", {}), line_color(trace)
    dash = tuple(length * width for length in DASHES[line.get("dash", "solid")])
    if "lines" in trace["mode"]:
        for part in _runs(points):
            drawing.line(part, color, width, dash)
    if "markers" in trace["mode"]:
        for point in points:
            if point is not None:
                draw_symbol(drawing, *point, marker.get("symbol", "circle"), color, 2.5)


def _runs(points: list[Point | None]) -> list[list[Point]]:
    runs: list[list[Point]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if len(run) > 1]


def line_width(trace: Trace) -> float:
    """Points; plotly's are pixels."""
    return float(trace.get("line", {}).get("width", 1.5)) * 0.8


def line_color(trace: Trace) -> str:
    """The colour of a line or of its marks."""
    return str(trace.get("line", {}).get("color") or trace.get("marker", {}).get("color"))


def draw_bar(drawing: Drawing, x: float, y: float, width: float, height: float, marker: dict[str, Any]) -> None:
    """A bar from its base (x, y), hatched where its marker has a pattern."""
    drawing.box(x, y, width, height, marker["color"], "#ffffff")
    if marker.get("pattern", {}).get("shape"):
        left, top = min(x, x + width), min(y, y + height)
        _hatch(drawing, left, top, abs(width), abs(height))


def _hatch(drawing: Drawing, left: float, top: float, width: float, height: float, gap: float = 4.5) -> None:
    """White lines from the lower left to the upper right, cut at the edges."""
    for i in range(1, int((width + height) / gap) + 1):
        across = i * gap  # x − left + y − top of every point of the line
        start, end = max(0.0, across - height), min(width, across)
        drawing.line([(left + start, top + across - start), (left + end, top + across - end)], "#ffffff", 0.6)


def draw_mark(drawing: Drawing, trace: Trace, x: float, y: float, width: float) -> None:
    """A trace's sign in the legend, from x to x + width around the height y."""
    if trace["type"] == "bar":
        draw_bar(drawing, x, y + 3.2, width, -6.4, trace["marker"])
    else:
        if "lines" in trace["mode"]:
            draw_line(drawing, [(x, y), (x + width, y)], trace | {"mode": "lines"}, line_width(trace))
        if "markers" in trace["mode"]:
            symbol = trace.get("marker", {}).get("symbol", "circle")
            draw_symbol(drawing, x + width / 2, y, symbol, line_color(trace), 2.5)
