"""The same figures as still SVG pictures, for readers without JavaScript and for papers: plotly traces drawn by matplotlib.

In: a `Figure`; out: SVG text and PDF bytes of one view, deterministic to the byte. Only the trace kinds the report uses are known:
`DRAWERS`.
Text stays text, so fonts (Chinese too) are those of the reader.
"""

import html
import io
import math
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas

from mtkv.report.figure import Figure, Trace

DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "X", "cross": "P", "star": "*"}
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mtkv",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8A8F98",
    "axes.axisbelow": True,
    "hatch.linewidth": 0.6,
}
WIDTH = 10.5


class Picture(NamedTuple):
    """One view of a figure as SVG text and as PDF."""

    svg: str
    pdf: bytes


def picture(figure: Figure, view: str | None = None) -> Picture:
    """One view of a figure (its first view by default)."""
    shown = view if view is not None or not figure.views else figure.views[0][0]
    traces = [trace for trace in figure.traces if trace["meta"].get("view", shown) == shown]
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs DejaVu lacks: the reader's fonts draw the text
        canvas = Canvas(figsize=(WIDTH, max(2.2, figure.height / 96)), layout="constrained")
        FigureCanvasSVG(canvas)
        _draw(canvas, figure, traces)
        facts = {"Creator": "mtkv", "Title": str(figure.title)}
        svg = _saved(canvas, "svg", facts | {"Date": None}).decode()
        canvas.set_layout_engine("none")  # what was laid out for the SVG stays where it is
        return Picture(svg, _saved(canvas, "pdf", facts | {"CreationDate": None}))


def _saved(canvas: Canvas, form: str, facts: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format=form, metadata=facts)
    return buffer.getvalue()


def _draw(canvas: Canvas, figure: Figure, traces: list[Trace]) -> None:
    panels = sorted(
        {(t.get("xaxis", "x"), t.get("yaxis", "y")) for t in traces if t.get("xaxis") != "x2" or t["type"] == "bar"}
    )
    panels = panels or [("x", "y")]
    polar = any(trace["type"] == "scatterpolar" for trace in traces)
    stacked = len({y for _, y in panels}) > 1
    shape = (len(panels), 1) if stacked else (1, len(panels))
    grid = canvas.subplots(*shape, squeeze=False, subplot_kw={"projection": "polar"} if polar else None)
    axes = dict(zip(panels, grid.flat, strict=True))
    for trace in traces:
        panel = (trace.get("xaxis", "x"), trace.get("yaxis", "y"))
        if panel in axes:  # the column of numbers beside the forest plot is in the table
            DRAWERS[trace["type"]](axes[panel], trace, traces)
    for (x, y), axis in axes.items():
        if not polar:
            _label_axis(
                axis, figure.layout.get(x.replace("x", "xaxis"), {}), figure.layout.get(y.replace("y", "yaxis"), {})
            )
    _legend(canvas, grid.flat, figure)


def _label_axis(axis: Axes, x: dict[str, Any], y: dict[str, Any]) -> None:
    axis.set_xlabel(x.get("title", {}).get("text", ""))
    axis.set_ylabel(y.get("title", {}).get("text", ""))
    if "range" in x:
        axis.set_xlim(*x["range"])
    if "range" in y:
        axis.set_ylim(*y["range"])
    if y.get("autorange") == "reversed" and not axis.yaxis_inverted():
        axis.invert_yaxis()
    if not axis.images:
        categories = y.get("type") == "category"
        axis.grid(axis="x" if categories else "y", color="#E3E6EA", linewidth=0.7)
    if x.get("zeroline"):
        axis.axvline(0, color="#6B7078", linewidth=1)


def _legend(canvas: Canvas, axes: Any, figure: Figure) -> None:
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if len(handles) > 1 and figure.layout.get("showlegend", True):
        canvas.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=min(6, len(handles)), frameon=False
        )


def _nan(values: list[Any]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _words(labels: list[str]) -> list[str]:
    """Plotly's labels without its markup."""
    return [html.unescape(text.replace("<br>", "\n")) for text in labels]


def _bar(axis: Axes, trace: Trace, traces: list[Trace]) -> None:
    marker = trace["marker"]
    if trace.get("orientation") == "h":
        axis.barh(_words(trace["y"]), _nan(trace["x"]), color=marker["color"], height=0.65)
        return
    offset, width = _slot(trace, traces)
    x = np.arange(len(trace["x"])) + offset
    hatch = "////" if marker.get("pattern", {}).get("shape") else None
    y = _nan(trace["y"])
    axis.bar(
        x,
        y,
        width,
        label=_words([trace["name"]])[0],
        color=marker["color"],
        hatch=hatch,
        edgecolor="white",
        linewidth=0.3,
    )
    if "error_y" in trace:
        errors = [_nan(trace["error_y"]["arrayminus"]), _nan(trace["error_y"]["array"])]
        axis.errorbar(x, y, errors, fmt="none", ecolor="#22262B", elinewidth=0.8, capsize=1.5)
    axis.set_xticks(range(len(trace["x"])), _words(trace["x"]))


def _slot(trace: Trace, traces: list[Trace]) -> tuple[float, float]:
    """Offset and width of a trace's bars inside their group."""
    groups = list(dict.fromkeys(t["offsetgroup"] for t in traces if t["type"] == "bar" and "offsetgroup" in t))
    width = 0.82 / max(1, len(groups))
    return (groups.index(trace["offsetgroup"]) - (len(groups) - 1) / 2) * width, width


def _scatter(axis: Axes, trace: Trace, traces: list[Trace]) -> None:
    marker = trace.get("marker", {})
    if "offsetgroup" in trace:  # the seed dots of grouped bars
        names = next(t["x"] for t in traces if t["type"] == "bar")
        x = [names.index(name) + _slot(trace, traces)[0] for name in trace["x"]]
        axis.scatter(x, _nan(trace["y"]), s=5, c="white", edgecolors="#22262B", linewidths=0.5, zorder=3)
    elif "error_x" in trace:
        _dots_with_whiskers(axis, trace, marker)
    else:
        line = trace.get("line", {})
        lines = "lines" in trace["mode"]
        axis.plot(
            trace["x"],
            _nan(trace["y"]),
            label=_words([trace["name"]])[0] if trace.get("showlegend", True) else None,
            color=line.get("color", marker.get("color")),
            linestyle=DASHES[line.get("dash", "solid")] if lines else "none",
            linewidth=line.get("width", 1.5) * 0.8,
            marker=MARKERS[marker.get("symbol", "circle")] if "markers" in trace["mode"] else None,
            markersize=5,
        )
        _band(axis, trace, line)


def _band(axis: Axes, trace: Trace, line: dict[str, Any]) -> None:
    seeds = trace["meta"].get("by_seed", {})
    if not seeds.get("band") or len(seeds["seeds"]) < 2:
        return
    values = np.array([_nan(column) for column in seeds["seeds"].values()])
    low, high = np.fmin.reduce(values), np.fmax.reduce(values)
    axis.fill_between(trace["x"], low, high, color=line["color"], alpha=0.15, linewidth=0)


def _dots_with_whiskers(axis: Axes, trace: Trace, marker: dict[str, Any]) -> None:
    errors = zip(trace["error_x"]["arrayminus"], trace["error_x"]["array"], strict=True)
    colors = zip(marker["color"], marker["line"]["color"], strict=True)
    for x, y, (low, high), (face, edge) in zip(_nan(trace["x"]), _words(trace["y"]), errors, colors, strict=True):
        bars = [_nan([low]), _nan([high])]
        axis.errorbar([x], [y], xerr=bars, fmt="o", markerfacecolor=face, markeredgecolor=edge, ecolor=edge, capsize=3)


def _polar(axis: Any, trace: Trace, traces: list[Trace]) -> None:
    angles = np.linspace(0, 2 * np.pi, len(trace["theta"]), endpoint=False)
    line = trace["line"]
    axis.plot(
        [*angles, angles[0]],
        _nan([*trace["r"], trace["r"][0]]),
        label=_words([trace["name"]])[0],
        color=line["color"],
        linestyle=DASHES[line["dash"]],
        linewidth=1.5,
        marker=MARKERS[trace["marker"]["symbol"]],
        markersize=4,
    )
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    axis.set_xticks(angles, _words(trace["theta"]))
    axis.set_ylim(0, 100)


def _heatmap(axis: Axes, trace: Trace, traces: list[Trace]) -> None:
    colors = LinearSegmentedColormap.from_list("scale", [tuple(stop) for stop in trace["colorscale"]])
    z = np.array([_nan(row) for row in trace["z"]])
    axis.imshow(z, cmap=colors, vmin=trace["zmin"], vmax=trace["zmax"], aspect="auto")
    for (i, j), value in np.ndenumerate(z):
        if not math.isnan(value):
            dark = sum(colors((value - trace["zmin"]) / (trace["zmax"] - trace["zmin"]))[:3]) < 1.5
            axis.text(j, i, _cell_text(trace, i, j), ha="center", va="center", color="white" if dark else "#1A1D21")
    axis.set_xticks(range(len(trace["x"])), _words(trace["x"]))
    axis.set_yticks(range(len(trace["y"])), _words(trace["y"]))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _cell_text(trace: Trace, i: int, j: int) -> str:
    """What plotly writes into a cell by `texttemplate`: the cell's text, its number, or nothing."""
    template = trace.get("texttemplate", "")
    if "%{text}" in template:
        return _words([trace["text"][i][j]])[0]
    found = re.search(r"%\{z:([^}]*)\}", template)
    return f"{trace['z'][i][j]:{found[1]}}" if found else ""


def _waterfall(axis: Axes, trace: Trace, traces: list[Trace]) -> None:
    steps = [value for value in trace["y"] if value is not None]
    starts = np.concatenate([[0.0], np.cumsum(steps)])
    kinds = ["increasing" if value >= 0 else "decreasing" for value in steps]
    colors = [trace[kind]["marker"]["color"] for kind in kinds]
    axis.bar(range(len(steps)), steps, 0.7, bottom=starts[:-1], color=colors)
    axis.bar([len(steps)], [starts[-1]], 0.7, color=trace["totals"]["marker"]["color"])
    for i, value in enumerate([*steps, float(starts[-1])]):
        top = max(starts[i], starts[i + 1]) if i < len(steps) else max(0.0, value)
        axis.annotate(f"{value:+.2f}", (i, top), (0, 2), textcoords="offset points", ha="center", va="bottom")
    axis.axhline(0, color="#6B7078", linewidth=1)
    axis.set_xticks(range(len(trace["x"])), _words(trace["x"]))


DRAWERS: dict[str, Callable[[Axes, Trace, list[Trace]], None]] = {
    "bar": _bar,
    "scatter": _scatter,
    "scatterpolar": _polar,
    "heatmap": _heatmap,
    "waterfall": _waterfall,
}
