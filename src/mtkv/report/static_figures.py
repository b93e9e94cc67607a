"""Figures as still pictures, for papers and for readers without JavaScript: plotly's traces drawn by matplotlib.

In: a `Figure`; out: SVG text and PDF bytes of one view, the same bytes every time. Only the trace kinds that the report uses are
known (`DRAWERS`). Lengths are points. matplotlib's layout engines and ligatures (a second font in each PDF) would take more time than
the drawing: margins follow from the widths of names, and ligatures are off. The user's matplotlibrc is neither read nor changed.
"""

import html
import io
import math
import re
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple
from unittest.mock import patch

import matplotlib
import numpy as np
from fontTools.subset import Options
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MultipleLocator

from mtkv.report.figures.figure import Figure, Trace

INK, FRAME, GRID, ZERO, WHISKER = "#1A1D21", "#8A8F98", "#E3E6EA", "#6B7078", "#22262B"
SIZE = 9.0  # font size
LINE, GAP = 1.2 * SIZE, 3.0  # height of a line of text; gap
TICK = 7.0  # length of a tick and of the space before its label
WIDTH, POINTS = 756.0, 0.75  # width of a picture; points per pixel of the page
HANDLE, COLUMNS = 22.0, 6  # legend: length of a line sample, most columns
# A PDF places every glyph itself. To cut the font's layout tables down to the letters used took a fifth of the time of all pictures.
UNUSED_TABLES = [*Options._drop_tables_default, "GSUB", "GPOS", "GDEF"]
RINGS = (20, 40, 60, 80, 100)
DASHES: dict[str, Any] = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}
SYMBOLS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "X", "cross": "P", "star": "*"}
FONT = "DejaVu Sans"  # part of matplotlib
CHINESE = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC"),
    *("WenQuanYi Micro Hei", "PingFang SC", "Microsoft YaHei", "SimHei"),
)


class Picture(NamedTuple):
    """One view of a figure as SVG text and as PDF."""

    svg: str
    pdf: bytes


class Panel(NamedTuple):
    """A pair of axes and its traces; `names` of "x" and "y" are the labels at 0, 1, 2, …, empty for an axis of numbers."""

    axes: Axes
    traces: list[Trace]
    names: dict[str, list[str]]

    def places(self, trace: Trace, axis: str) -> np.ndarray:
        """Positions of a trace's values or names along an axis; NaN for an unknown value."""
        names = self.names[axis]
        return _numbers(names.index(plain(value)) if isinstance(value, str) else value for value in trace[axis])


@cache
def fonts() -> list[str]:
    """Font families for a text with Chinese letters, which DejaVu lacks: the first of `CHINESE` that this machine has is added."""
    known = {font.name for font in fontManager.ttflist}
    return [FONT, *[name for name in CHINESE if name in known][:1], "sans-serif"]


@cache
def settings() -> Any:
    """rcParams for the pictures: matplotlib's defaults with our own on top."""
    own: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
    own |= {"font.family": ["sans-serif"], "font.sans-serif": [FONT], "font.size": SIZE, "text.parse_math": False}
    own |= {"svg.fonttype": "none", "svg.hashsalt": "mtkv"}  # text stays text
    own |= {"pdf.fonttype": 42, "ps.fonttype": 42}  # TrueType, as journals ask for; by the latter PDF splits fonts, too
    own |= {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FRAME, "axes.axisbelow": True}
    own |= {"axes.formatter.limits": (-4, 7), "axes.formatter.useoffset": False}
    own |= {"grid.color": GRID, "grid.linewidth": 0.7, "hatch.linewidth": 0.6}
    own |= {f"{axis}tick.{part}": color for axis in "xy" for part, color in (("color", FRAME), ("labelcolor", INK))}
    own |= {"legend.frameon": False, "legend.handlelength": HANDLE / SIZE, "legend.labelspacing": 0.35}
    return own | {"legend.borderpad": 0.0, "text.color": INK, "axes.labelcolor": INK}


def picture(figure: Figure, view: str | None = None) -> Picture:
    """One view of a figure (its first view by default)."""
    shown = view if view is not None or not figure.views else figure.views[0][0]
    traces = [trace for trace in figure.traces if trace["meta"].get("view", shown) == shown]
    with matplotlib.rc_context(settings()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # SVG has the letter, PDF a box
        canvas = Canvas(figsize=(WIDTH / 72, max(2.2, figure.height * POINTS / 72)), dpi=72)
        below = _legend(canvas, traces) if figure.layout.get("showlegend", True) else GAP
        if any(trace["type"] == "scatterpolar" for trace in traces):
            _draw_radar(canvas, traces, below)
        elif traces:
            _draw_panels(canvas, traces, figure.layout, below)
        for text in canvas.findobj(Text):
            text.set_fontfeatures(("-liga",))
            if any(letter > "\u2e7f" for letter in text.get_text()):
                text.set_fontfamily(fonts())
        svg, pdf, title = io.StringIO(), io.BytesIO(), str(figure.title)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(canvas).print_svg(svg, metadata={**nothing, "Title": title})
        with patch.object(Options, "_drop_tables_default", UNUSED_TABLES):
            FigureCanvasPdf(canvas).print_pdf(pdf, metadata={"Creator": "mtkv", "Title": title, "CreationDate": None})
        return Picture(svg.getvalue(), pdf.getvalue())


def plain(label: str) -> str:
    """Plotly's label without its markup."""
    return html.unescape(label.replace("<br>", "\n"))


def _numbers(values: Iterable[Any]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _widest(texts: Iterable[str]) -> float:
    """Width in points of the widest line of the texts."""
    return max((_width(line) for text in texts for line in text.split("\n")), default=0.0)


@cache
def _width(line: str) -> float:
    font = FontProperties(family=fonts(), size=SIZE)
    return float(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0])


def _legend(canvas: Canvas, traces: list[Trace]) -> float:
    """Draw the legend at the bottom, if it has two names or more; return its height in points.

    Grouped bars and lines have an entry; dots of seeds, whiskers, heatmaps and numbers have none.
    """
    entries: dict[str, Patch | Line2D] = {}
    for trace in traces:
        kind, name = trace["type"], plain(trace["name"])
        line = kind == "scatter" and trace["mode"] != "text" and "offsetgroup" not in trace and "error_x" not in trace
        if kind == "bar" and trace.get("orientation") != "h":
            entries.setdefault(name, Patch(**_bar_style(trace)))
        elif (line or kind == "scatterpolar") and trace.get("showlegend", True):
            entries.setdefault(name, Line2D([], [], **_line_style(trace)))
    if len(entries) < 2:
        return GAP
    room = int((WIDTH - 2 * GAP) / (_widest(entries) + HANDLE + 3 * SIZE))
    columns = max(1, min(COLUMNS, len(entries), room))
    names = [name for column in range(columns) for name in list(entries)[column::columns]]  # matplotlib fills columns
    canvas.legend([entries[name] for name in names], names, loc="lower center", ncols=columns, borderaxespad=GAP / SIZE)
    return -(-len(names) // columns) * 1.35 * LINE + 2 * GAP


def _draw_panels(canvas: Canvas, traces: list[Trace], layout: dict[str, Any], below: float) -> None:
    """The panels below each other where their y axes differ, else side by side.

    The column of numbers beside a forest plot is not drawn: it is in the figure's table.
    """
    panels = sorted({_panel(trace) for trace in traces if trace.get("xaxis") != "x2" or trace["type"] == "bar"})
    stacked, height = len({y for _, y in panels}) > 1, canvas.get_figheight() * 72
    for i, key in enumerate(panels):
        own = [trace for trace in traces if _panel(trace) == key]
        start, end = (part / len(panels) for part in (i, i + 1))
        left, right = (0.0, WIDTH) if stacked else (start * WIDTH, end * WIDTH)
        bottom, top = (below + part * (height - below) for part in ((1 - end, 1 - start) if stacked else (0, 1)))
        layouts = [layout.get(f"{name[0]}axis{name[1:]}", {}) for name in key]
        _draw_panel(canvas, own, layouts, (left, bottom, right, top))


def _panel(trace: Trace) -> tuple[str, str]:
    return trace.get("xaxis", "x"), trace.get("yaxis", "y")


def _draw_panel(
    canvas: Canvas, traces: list[Trace], layouts: list[dict[str, Any]], box: tuple[float, float, float, float]
) -> None:
    """One panel inside `box` (left, bottom, right, top, in points), with margins as wide as its labels."""
    names = {
        axis: list(dict.fromkeys(plain(one) for trace in traces for one in trace[axis] if isinstance(one, str)))
        for axis in "xy"
    }
    titles = [one.get("title", {}).get("text", "") for one in layouts]
    left = box[0] + GAP + TICK + 1.5 * LINE * bool(titles[1]) + (_widest(names["y"]) if names["y"] else 3.3 * SIZE)
    width, height = box[2] - 4 * GAP - left, canvas.get_figheight() * 72
    slanted = _widest(names["x"]) > width / max(1, len(names["x"]))
    shown = [name.replace("\n", "") for name in names["x"]] if slanted else names["x"]
    label = 0.87 * _widest(shown) if slanted else LINE * max((name.count("\n") + 1 for name in shown), default=1)
    bottom = box[1] + GAP + TICK + label + 1.5 * LINE * bool(titles[0])
    axes = canvas.add_axes((left / WIDTH, bottom / height, width / WIDTH, (box[3] - GAP - bottom) / height))
    panel = Panel(axes, traces, names)
    for trace in traces:
        DRAWERS[trace["type"]](panel, trace)
    axes.set(xlabel=titles[0], ylabel=titles[1])
    turn = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    _scale(panel, "x", layouts[0], shown, turn)
    _scale(panel, "y", layouts[1], names["y"], {})
    if traces[0]["type"] == "heatmap":
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    else:
        axes.grid(axis="x" if layouts[1].get("type") == "category" else "y")


def _scale(panel: Panel, axis: str, layout: dict[str, Any], shown: list[str], turn: dict[str, Any]) -> None:
    """Names or numbers along an axis, its range, and the line at zero where the layout has one."""
    axes, kind, scale = panel.axes, panel.traces[0]["type"], getattr(panel.axes, f"{axis}axis")
    if shown:
        room = 0.5 if kind in ("heatmap", "scatter") else 0.6
        scale.set_ticks(range(len(shown)), shown, **turn)
        axes.set(**{f"{axis}lim": (-room, len(shown) - 1 + room)})
    elif "range" in layout:
        axes.set(**{f"{axis}lim": layout["range"]})
    if not shown and "dtick" in layout:
        scale.set_major_locator(MultipleLocator(layout["dtick"]))
    if axis == "y" and (kind == "heatmap" or layout.get("autorange") == "reversed"):
        axes.invert_yaxis()
    low, high = scale.get_view_interval()
    if axis == "x" and layout.get("zeroline") and low < 0 < high:
        axes.axvline(0, color=ZERO, linewidth=1)


def _bar_style(trace: Trace) -> dict[str, Any]:
    marker = trace["marker"]
    hatch = "////" if marker.get("pattern", {}).get("shape") else None
    return {"facecolor": marker["color"], "edgecolor": "white", "linewidth": 0.3, "hatch": hatch}


def _line_style(trace: Trace) -> dict[str, Any]:
    line, marker, mode = trace.get("line", {}), trace.get("marker", {}), trace["mode"]
    dash = DASHES[line.get("dash", "solid")] if "lines" in mode else "none"
    symbol = SYMBOLS[marker.get("symbol", "circle")] if "markers" in mode else None
    look = {"linestyle": dash, "linewidth": line.get("width", 1.5) * 0.8, "marker": symbol}
    return look | {"color": line.get("color") or marker.get("color"), "markersize": 5, "markeredgewidth": 0}


def _bar(panel: Panel, trace: Trace) -> None:
    x, y = panel.places(trace, "x"), panel.places(trace, "y")
    known = np.isfinite(x) & np.isfinite(y)
    if trace.get("orientation") == "h":
        panel.axes.barh(y[known], x[known], 0.65, color=np.array(trace["marker"]["color"])[known])
        return
    offset, width = _slot(panel, trace)
    panel.axes.bar(x[known] + offset, y[known], width, **_bar_style(trace))
    if "error_y" in trace:
        panel.axes.errorbar(
            x + offset, y, _whiskers(trace, "y"), fmt="none", ecolor=WHISKER, elinewidth=0.8, capsize=1.5, capthick=0.8
        )


def _slot(panel: Panel, trace: Trace) -> tuple[float, float]:
    """Offset and width of a trace's bars inside their group."""
    bars = [one for one in panel.traces if one["type"] == "bar"]
    groups = list(dict.fromkeys(one["offsetgroup"] for one in bars if "offsetgroup" in one))
    width = 0.82 / max(1, len(groups))
    return (groups.index(trace["offsetgroup"]) - (len(groups) - 1) / 2) * width, width


def _whiskers(trace: Trace, axis: str) -> np.ndarray:
    """[2, points]: lengths of the lower and the upper half of every whisker."""
    return np.stack([_numbers(trace[f"error_{axis}"][name]) for name in ("arrayminus", "array")])


def _scatter(panel: Panel, trace: Trace) -> None:
    axes, x, y = panel.axes, panel.places(trace, "x"), panel.places(trace, "y")
    if "offsetgroup" in trace:  # the seed dots of grouped bars
        axes.scatter(x + _slot(panel, trace)[0], y, s=5.8, c="white", edgecolors=WHISKER, linewidths=0.5, zorder=3)
    elif "error_x" in trace:
        marker, lengths = trace["marker"], _whiskers(trace, "x")
        for i, (face, edge) in enumerate(zip(marker["color"], marker["line"]["color"], strict=True)):
            dot: dict[str, Any] = {"fmt": "o", "markersize": 6, "markerfacecolor": face, "markeredgecolor": edge}
            high = _whiskers(trace, "y")[:, [i]] if "error_y" in trace else None
            axes.errorbar(x[[i]], y[[i]], yerr=high, xerr=lengths[:, [i]], ecolor=edge, capsize=3, **dot)
        for place, name in zip(zip(x, y, strict=True), trace.get("text", ()), strict=False):
            axes.annotate(plain(name), place, (GAP, GAP), textcoords="offset points")
    else:
        axes.plot(x, y, **_line_style(trace))
        seeds = trace["meta"].get("by_seed", {})
        if seeds.get("band") and len(seeds["seeds"]) > 1:
            every = np.stack([_numbers(values) for values in seeds["seeds"].values()])
            low, high = np.fmin.reduce(every), np.fmax.reduce(every)
            axes.fill_between(x, low, high, color=_line_style(trace)["color"], alpha=0.15, linewidth=0)


def _heatmap(panel: Panel, trace: Trace) -> None:
    colors = LinearSegmentedColormap.from_list("scale", [tuple(stop) for stop in trace["colorscale"]], N=4096)
    z = np.stack([_numbers(row) for row in trace["z"]])
    places = np.argwhere(np.isfinite(z)).tolist()
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    cells = [corners + np.array([j, i]) for i, j in places]
    faces = colors([(z[i, j] - trace["zmin"]) / (trace["zmax"] - trace["zmin"]) for i, j in places])
    panel.axes.add_collection(PolyCollection(cells, facecolors=faces, edgecolors="white", linewidths=0.3))
    texts = [_cell_text(trace, i, j) for i, j in places]
    room = panel.axes.get_position().width * WIDTH / z.shape[1] - GAP
    look = {"size": SIZE * min(1.0, room / max(1.0, _widest(texts)))} | trace.get("textfont", {})
    for (i, j), shown in zip(places, texts, strict=True):
        panel.axes.text(j, i, shown, ha="center", va="center", **look)


def _cell_text(trace: Trace, i: int, j: int) -> str:
    """What plotly would write into a cell by `texttemplate`: the cell's text, its number, or nothing."""
    template = trace.get("texttemplate", "")
    if "%{text}" in template:
        return plain(trace["text"][i][j])
    found = re.search(r"%\{z:([^}]*)\}", template)
    return f"{trace['z'][i][j]:{found[1]}}" if found else ""


def _waterfall(panel: Panel, trace: Trace) -> None:
    """Each bar starts where the last one ended; the final bar is the total."""
    steps = [value for value in trace["y"] if value is not None]
    ends = np.cumsum([0.0, *steps])
    bases, heights = np.append(ends[:-1], 0.0), np.append(steps, ends[-1])
    kinds = [*("increasing" if step >= 0 else "decreasing" for step in steps), "totals"]
    panel.axes.bar(range(len(kinds)), heights, 0.7, bases, color=[trace[kind]["marker"]["color"] for kind in kinds])
    for i, height in enumerate(heights):
        top = (i, bases[i] + max(0.0, height))
        panel.axes.annotate(f"{height:+.2f}", top, (0, GAP), textcoords="offset points", ha="center")
    panel.axes.axhline(0, color=ZERO, linewidth=1)


def _draw_radar(canvas: Canvas, traces: list[Trace], below: float) -> None:
    """Datasets as spokes from the top clockwise, one scale from 0 to 100."""
    names, height = [plain(name) for name in traces[0]["theta"]], canvas.get_figheight() * 72
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    side = height - below - 4 * LINE
    box = ((WIDTH - side) / 2 / WIDTH, (below + 2 * LINE) / height, side / WIDTH, side / height)
    axes: Any = canvas.add_axes(box, projection="polar")
    axes.set(theta_zero_location="N", theta_direction=-1, ylim=(0, 100), yticks=RINGS, rlabel_position=180 / len(names))
    axes.set_xticks(angles, names)
    for label, side in zip(axes.get_xticklabels(), np.sin(angles).round(6), strict=True):
        label.set_ha("left" if side > 0 else "right" if side < 0 else "center")
    axes.tick_params(axis="y", labelsize=SIZE - 1, labelcolor=ZERO)
    for trace in traces:
        axes.plot([*angles, 2 * np.pi], _numbers([*trace["r"], trace["r"][0]]), **_line_style(trace))


DRAWERS = {"bar": _bar, "scatter": _scatter, "heatmap": _heatmap, "waterfall": _waterfall}
KINDS = (*DRAWERS, "scatterpolar")  # of traces
