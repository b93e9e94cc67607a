"""The same figures as still pictures, for readers without JavaScript and for papers: plotly traces drawn as lines, areas and texts.

In: a `Figure`; out: SVG text and PDF bytes of one view, from one drawing, the same bytes every time. Only the trace kinds the report uses
are known: `KINDS`. (A drawing library would do, and did: it took most of a report's time.)
"""

import json
from collections.abc import Iterable
from typing import NamedTuple

from mtkv.report.axes import GAP, LINE, SIZE
from mtkv.report.drawing import Drawing
from mtkv.report.drawing_pdf import as_pdf
from mtkv.report.drawing_svg import as_svg
from mtkv.report.figure import Figure, Trace
from mtkv.report.fonts import FAMILY, Font, font_of
from mtkv.report.marks import draw_mark, plain
from mtkv.report.panels import Frame, draw_panels
from mtkv.report.polar import draw_radar
from mtkv.report.traces import DRAWERS

__all__ = ["KINDS", "Picture", "letters", "picture"]
KINDS = (*DRAWERS, "scatterpolar")  # of traces
WIDTH = 756.0
POINTS = 0.75  # per pixel of the page
HANDLE = 22.0
COLUMNS = 6


class Picture(NamedTuple):
    """One view of a figure as SVG text and as PDF."""

    svg: str
    pdf: bytes


def letters(figures: Iterable[Figure]) -> str:
    """Every letter that pictures of these figures can have."""
    return "".join(sorted(set("−" + json.dumps([figure.payload() for figure in figures], ensure_ascii=False))))


def picture(figure: Figure, view: str | None = None, font: Font | None = None) -> Picture:
    """One view of a figure (its first view by default); `font` has the letters of all figures of a report."""
    font = font or font_of(letters([figure]))
    shown = view if view is not None or not figure.views else figure.views[0][0]
    traces = [trace for trace in figure.traces if trace["meta"].get("view", shown) == shown]
    drawing = Drawing(WIDTH, max(2.2 * 72, figure.height * POINTS), str(figure.title))
    below = _legend(drawing, figure, traces, font)
    if any(trace["type"] == "scatterpolar" for trace in traces):
        draw_radar(drawing, traces, drawing.height - below, font)
    elif traces:
        draw_panels(Frame(drawing, font, traces, figure.layout, drawing.height - below))
    return Picture(as_svg(drawing, FAMILY), as_pdf(drawing, font))


def _legend(drawing: Drawing, figure: Figure, traces: list[Trace], font: Font) -> float:
    """Draws the legend at the bottom, in rows; returns its height."""
    entries = {plain(trace["name"]): trace for trace in reversed(traces) if _named(trace)}
    names = list(reversed(entries))
    if len(names) < 2 or not figure.layout.get("showlegend", True):
        return GAP
    width = max(font.width(name, SIZE) for name in names) + HANDLE + 5 * GAP
    columns = max(1, min(COLUMNS, len(names), int((WIDTH - 2 * GAP) / width)))
    rows = -(-len(names) // columns)
    top = drawing.height - rows * 1.35 * LINE - GAP
    for i, name in enumerate(names):
        x = (WIDTH - columns * width) / 2 + (i % columns) * width
        y = top + (i // columns + 0.6) * 1.35 * LINE
        draw_mark(drawing, entries[name], x, y, HANDLE)
        drawing.text(x + HANDLE + 2 * GAP, y + SIZE * 0.36, name)
    return drawing.height - top + GAP


def _named(trace: Trace) -> bool:
    """Bars that stand side by side and lines have an entry; dots of seeds, whiskers, maps and numbers have none."""
    if trace["type"] == "bar":
        return trace.get("orientation") != "h"
    lines = (
        trace["type"] == "scatter" and trace["mode"] != "text" and "offsetgroup" not in trace and "error_x" not in trace
    )
    return (lines or trace["type"] == "scatterpolar") and trace.get("showlegend", True)
