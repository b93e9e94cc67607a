"""The look of the figures: colours, one style per arm, axes, and traces that several figures have.

Colours stay apart for colour-blind readers (Okabe and Ito 2008). Arms that are only evaluated (the raw student, the teachers) and the
baseline are drawn in greys, so that colour means "an arm under test".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Trace = dict[str, Any]
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A800")
GREYS = ("#8A8F98", "#5A6069", "#A6ACB5", "#757B85")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
BETTER, WORSE, NEUTRAL = OKABE_ITO[0], OKABE_ITO[1], GREYS[0]
# Orange for worse, blue for better, light in the middle: no red-green pair. Every colour of a scale is light enough for CELL_TEXT
# (contrast 4.5 : 1 and more), which plotly's own choice of white or grey is not, and cells look the same in light and dark mode.
DIVERGING = [[0.0, "#E8822F"], [0.25, "#F4BE92"], [0.5, "#F3F4F6"], [0.75, "#9CC8E8"], [1.0, "#3A8FCB"]]
SEQUENTIAL = [[0.0, "#F3F6FA"], [0.5, "#9CC8E8"], [1.0, "#3A8FCB"]]
P_VALUES = [[0.0, "#3A8FCB"], [0.05, "#9CC8E8"], [0.051, "#EDEFF2"], [1.0, "#F8F9FA"]]
CELL_TEXT = {"color": "#111111"}
# Axes of names: along the bottom, and down the side.
ACROSS: dict[str, Any] = {"type": "category", "showgrid": False, "tickangle": 0}
DOWN: dict[str, Any] = {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False}


@dataclass(frozen=True)
class ArmStyle:
    """Colour, dash and symbol of one arm, teacher or dataset, the same in every figure."""

    color: str
    dash: str
    symbol: str


def style(position: int, colors: tuple[str, ...] = OKABE_ITO) -> ArmStyle:
    """The style of number `position`; dash and symbol change when the colours start again."""
    turn = position // len(colors)
    return ArmStyle(
        colors[position % len(colors)], DASHES[turn % len(DASHES)], SYMBOLS[(position + turn) % len(SYMBOLS)]
    )


def arm_styles(arms: list[str], trained: list[str], baseline: str) -> dict[str, ArmStyle]:
    """One style per arm: greys for the baseline and for arms without training, colours for the others."""
    grey = [arm for arm in arms if arm == baseline or arm not in trained]
    coloured = [arm for arm in arms if arm not in grey]
    neutral = sorted(grey, key=lambda arm: arm != baseline)
    return {arm: style(i) for i, arm in enumerate(coloured)} | {arm: style(i, GREYS) for i, arm in enumerate(neutral)}


def margin(left: int = 64, bottom: int = 64, right: int = 24, top: int = 16) -> dict[str, int]:
    """Plotly's margins in pixels."""
    return {"l": left, "r": right, "t": top, "b": bottom}


def heatmap_trace(name: str, x: list[str], y: list[str], z: list[list[Any]], scale: Any, **more: Any) -> Trace:
    """A heatmap of `z` [y, x] in the look that all have. `scale`: colours from the lowest value to the highest; `more`: the other keys."""
    look = {"xgap": 2, "ygap": 2, "hoverongaps": False, "textfont": CELL_TEXT}
    bar = {"colorbar": {"thickness": 12, "outlinewidth": 0}}
    return {"type": "heatmap", "name": name, "x": x, "y": y, "z": z, "colorscale": scale, **look, **bar, **more}


def centred(values: Iterable[Iterable[float | None]]) -> dict[str, Any]:
    """A scale of two colours with 0 in the middle, as wide as the values."""
    bound = max((abs(value) for line in values for value in line if value is not None), default=1.0) or 1.0
    return {"scale": DIVERGING, "zmin": -bound, "zmax": bound, "zmid": 0}


def error_bars(whiskers: Sequence[tuple[float | None, float | None]], thickness: float, width: int) -> Trace:
    """Plotly's whiskers around a trace's points, from the lengths that `interval` gives for each."""
    return {
        "type": "data",
        "array": [high for _, high in whiskers],
        "arrayminus": [low for low, _ in whiskers],
        "thickness": thickness,
        "width": width,
    }
