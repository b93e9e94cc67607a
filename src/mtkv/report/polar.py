"""The radar of the still pictures: datasets as spokes from the top clockwise, one scale from 0 to 100."""

import math

from mtkv.report.axes import GRID, LINE, SIZE, ZERO
from mtkv.report.drawing import Circle, Drawing, Point
from mtkv.report.figure import Trace
from mtkv.report.fonts import Font
from mtkv.report.marks import draw_line, plain

RINGS = (20, 40, 60, 80, 100)


def draw_radar(drawing: Drawing, traces: list[Trace], height: float, font: Font) -> None:
    """All traces (`theta`, `r`) around one centre, above `height`."""
    names = [plain(name) for name in traces[0]["theta"]]
    center, radius = (drawing.width / 2, height / 2), height / 2 - 2 * LINE

    def place(spoke: float, value: float) -> Point:
        angle = 2 * math.pi * spoke / len(names)
        return center[0] + radius * value / 100 * math.sin(angle), center[1] - radius * value / 100 * math.cos(angle)

    for ring in RINGS:
        drawing.parts.append(Circle(*center, radius * ring / 100, stroke=ZERO if ring == 100 else GRID, width=0.8))
    for i, name in enumerate(names):
        drawing.line([center, place(i, 100)], GRID, 0.8)
        x, y = place(i, 106)
        side = 0.5 if abs(x - center[0]) < 1 else 0.0 if x > center[0] else 1.0
        drawing.text(x, y + SIZE * (0.36 + 0.5 * (y - center[1]) / radius), name, side)
    for trace in traces:
        values = [None if value is None else place(i, value) for i, value in enumerate(trace["r"])]
        draw_line(drawing, [*values, values[0]], trace, 1.5)
    for ring in RINGS:
        drawing.text(*place(0.5, ring), str(ring), 0.5, SIZE - 1, color=ZERO)
