"""What a figure is: plotly traces and layout, a caption, the numbers as a table, and the keys the page's filter needs.

A trace's `meta` says what it shows: `arm`, `seed`, `dataset` for a whole trace, `points` (or `rows`/`columns` of a heatmap)
for single entries; `by_seed` holds the per-seed values its means are made of, so that the page can average again over a
subset of seeds. The filter in static/figures.js reads nothing else.

Texts are English; those that hold facts are made by `strings.say`, which knows their Chinese too. The word for a paired difference
(`outcome`) is the same in every figure and table: better, worse, equivalent, undecided or missing; an undecided one has the smallest
difference that the study would have seen four times out of five, so that "not significant" is never read as "no difference".
"""

import html
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from mtkv.report.figures.palette import Trace
from mtkv.report.strings import Words, say


@dataclass
class Figure:
    """One figure. `views` are alternatives (id, label) shown one at a time: a trace belongs to the view in `meta.view`, or to all.

    The first `stills` of them become SVG files.
    """

    id: str
    section: str
    title: str
    caption: str
    traces: list[Trace]
    layout: dict[str, Any]
    header: list[str]
    rows: list[list[str]]
    views: list[tuple[str, str]] = field(default_factory=list)
    view_label: str = "Show"
    height: int = 420
    stills: int = 1

    def payload(self) -> dict[str, Any]:
        """The figure as JSON-able values, for the page's script."""
        return {
            "id": self.id,
            "title": self.title,
            "caption": self.caption,
            "traces": self.traces,
            "layout": base_layout(self.height) | self.layout,
            "views": [list(view) for view in self.views],
        }

    def texts(self) -> list[str]:
        """All texts of the figure that a reader can see: its words, names and numbers."""
        axes = [axis["title"]["text"] for axis in self.layout.values() if isinstance(axis, dict) and "title" in axis]
        said = [self.title, self.caption, self.view_label, *self.header, *(name for _, name in self.views), *axes]
        return said + [text for trace in self.traces for text in trace_texts(trace)] + list(chain(*self.rows))


def trace_texts(trace: Trace) -> Iterator[str]:
    """The texts that plotly shows of a trace: names, labels and the template of the hover label."""
    own = ("hovertemplate",) if trace["type"] == "heatmap" else ("name", "hovertemplate")
    yield from (trace[name] for name in own if name in trace)
    for name in ("x", "y", "theta", "text"):
        for entry in trace.get(name, ()):
            if not isinstance(entry, str | list):
                break  # numbers
            yield from [entry] if isinstance(entry, str) else entry


def base_layout(height: int) -> dict[str, Any]:
    """Layout shared by all figures; colours of text and grid are set by the page's theme."""
    return {
        "height": height,
        "margin": {"l": 64, "r": 24, "t": 16, "b": 64},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    }


class Verbatim(str):
    """Text that a person or a model wrote (a question, an answer, a token): tables quote it as it is and never read it as a number."""

    verbatim = True


def label(text: object) -> str:
    """`text` escaped for plotly, which reads a little HTML in names."""
    if isinstance(text, Words):
        return text.mapped(lambda one: html.escape(one, quote=False))
    return html.escape(str(text), quote=False)


def tick(text: object) -> str:
    """`text` as a label below an axis: long names break after their first underscore."""
    shown = label(text)
    return shown.replace("_", "_<br>", 1) if len(shown) > 8 else shown


def number(value: Any, digits: int = 6) -> float | None:
    """A JSON-able float with `digits` significant digits; None for null, NaN and infinities."""
    if value is None:
        return None
    value = float(value)
    if not math.isfinite(value):
        return None
    return 0.0 if value == 0 else round(value, digits - 1 - math.floor(math.log10(abs(value))))


def percent(value: Any) -> float | None:
    """A share as percentage points, or None."""
    return None if (known := number(value, 12)) is None else number(known * 100, 8)


def by_seed(value: str, seeds: Mapping[int, list[Any]], band: bool = False) -> dict[str, Any]:
    """`meta.by_seed`: the trace's attribute `value` is the mean over these per-seed lists; with `band` their range is drawn too."""
    return {"value": value, "seeds": {str(seed): values for seed, values in seeds.items()}, "band": band}


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the known values, None when there are none."""
    known = [value for value in values if value is not None]
    return number(math.fsum(known) / len(known), 8) if known else None


def interval(low: Any, high: Any, center: Any) -> tuple[float | None, float | None]:
    """Lengths of the two whiskers around `center`, in percentage points, from shares."""
    if None in (number(low), number(high), number(center)):
        return None, None
    return percent(max(0.0, center - low)), percent(max(0.0, high - center))


def word(value: Any) -> str:
    """The text of a table's cell; empty for null and NaN."""
    return "" if value is None or value != value else str(value)


def text(value: Any, digits: int = 1, sign: bool = False, missing: str = "—") -> str:
    """`value` with `digits` decimals and a true minus sign, or `missing`."""
    known = number(value, 12)
    if known is None:
        return missing
    shown = f"{known:+.{digits}f}" if sign else f"{known:.{digits}f}"
    if not float(shown):
        shown = shown.lstrip("+-")
    return shown.replace("-", "\u2212")


def p_text(value: Any) -> str:
    """A p value: three decimals, "<0.001" below."""
    known = number(value)
    if known is None:
        return "—"
    return "<0.001" if known < 0.001 else f"{known:.3f}"


def outcome(pair: dict[str, Any] | None, alpha: float) -> str:
    """The word; rows from before the column `outcome` existed are judged by their p value and interval."""
    if pair is None or number(pair.get("delta")) is None:
        return "missing"
    if isinstance(known := pair.get("outcome"), str):
        return known
    p, low, high = (number(pair.get(name)) for name in ("p_holm", "low", "high"))
    if p is None or low is None or high is None or not p < alpha or low <= 0 <= high:
        return "undecided"
    return "better" if low > 0 else "worse"


def clear(pair: dict[str, Any] | None, alpha: float) -> bool:
    """Whether the arm is better or worse, beyond doubt."""
    return outcome(pair, alpha) in ("better", "worse")


def verdict(pair: dict[str, Any] | None, alpha: float) -> str:
    """The word; for `undecided` with the smallest detectable difference: `undecided, sees ≥ 3.4` (points)."""
    word = outcome(pair, alpha)
    seen = detectable(pair)
    return say("{word}, sees ≥ {points}", word=word, points=seen) if word == "undecided" and seen != "—" else word


def detectable(pair: dict[str, Any] | None) -> str:
    """The smallest detectable difference in points."""
    return text(percent((pair or {}).get("mdd")))
