"""Axes of the still pictures: from values to points, round numbers beside them, and the frame around a panel."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from mtkv.report.drawing import Drawing
from mtkv.report.fonts import Font

SIZE = 9.0
GAP = 3.0
TICK = 3.5
LINE = 1.2 * SIZE
FRAME, GRID, ZERO = "#8A8F98", "#E3E6EA", "#6B7078"
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


class Scale(NamedTuple):
    """Values `low`..`high` drawn from `start` to `end`, in points; `names` are the labels of 0, 1, 2, … where values are names.

    Marks stand at every `step`, if it is not 0.
    """

    low: float
    high: float
    start: float
    end: float
    names: tuple[str, ...] = ()
    step: float = 0.0

    def __call__(self, value: Any) -> float:
        """The place of a value or of a name."""
        known = self.names.index(value) if isinstance(value, str) else value
        return self.start + (known - self.low) / (self.high - self.low) * (self.end - self.start)

    def marks(self) -> list[tuple[float, str]]:
        """Places and texts of the marks of the axis."""
        if self.names:
            return [(self(i), name) for i, name in enumerate(self.names)]
        room = abs(self.end - self.start) / SIZE / (2 if self.upright else 3)
        step = self.step or round_step(self.low, self.high, int(min(9, max(1, room))))
        return [(self(value), shown) for value, shown in multiples(step, self.low, self.high)]

    @property
    def upright(self) -> bool:
        """Whether the axis goes from bottom to top."""
        return self.end < self.start


def round_step(low: float, high: float, most: int) -> float:
    """1, 2, 2.5 or 5 times a power of ten, of which at most `most` lie between `low` and `high`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in STEPS if step * power >= rough * (1 - 1e-9))


def multiples(step: float, low: float, high: float) -> list[tuple[float, str]]:
    """The multiples of `step` in [low, high] and their texts."""
    slack = step * 1e-6
    counts = range(math.ceil((low - slack) / step), math.floor((high + slack) / step) + 1)
    return list(zip((count * step for count in counts), _texts([count * step for count in counts], step), strict=True))


def _texts(values: list[float], step: float) -> list[str]:
    largest = max((abs(value) for value in values), default=0.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += not math.isclose(step * 10**digits, round(step * 10**digits), abs_tol=1e-6)
    if largest and not 1e-3 <= largest < 1e6:
        return [f"{value:.3g}".replace("-", "\u2212") for value in values]
    return [
        f"{value:.{digits}f}".replace("-", "\u2212") if abs(value) > step / 2 else f"{0:.{digits}f}" for value in values
    ]


def limits(values: Iterable[float | None], from_zero: bool, given: list[float] | None) -> tuple[float, float]:
    """The range of an axis: as given, or that of the values with a margin (none at 0 where bars stand on it)."""
    if given:
        return given[0], given[1]
    known = [value for value in values if value is not None and math.isfinite(value)] + ([0.0] if from_zero else [])
    low, high = min(known, default=0.0), max(known, default=1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin * (not from_zero or low < 0), high + margin * (not from_zero or high > 0 or low == high)


def lines_of(names: Iterable[str]) -> int:
    """The most lines that one of the names has."""
    return max((name.count("\n") + 1 for name in names), default=1)


def widest(names: Iterable[str], font: Font) -> float:
    """Points that the widest line of the names takes."""
    return max((font.width(line, SIZE) for name in names for line in name.split("\n")), default=0.0)


def draw_grid(drawing: Drawing, x: Scale, y: Scale, grid: str) -> None:
    """Lines across the panel at the marks of the axis `grid`: "x", "y" or none."""
    for place, _ in {"x": x.marks, "y": y.marks}[grid]() if grid else []:
        ends = [(place, y.start), (place, y.end)] if grid == "x" else [(x.start, place), (x.end, place)]
        drawing.line(ends, GRID, 0.7)


def draw_frame(drawing: Drawing, x: Scale, y: Scale, lines: bool, slanted: bool) -> None:
    """Texts beside the axes, and with `lines` the axes and their marks; `slanted` turns the texts of x."""
    bottom, length = max(y.start, y.end), TICK if lines else 0.0
    for place, shown in x.marks():
        if lines:
            drawing.line([(place, bottom), (place, bottom + length)], FRAME, 0.8)
        if slanted:
            drawing.text(place + SIZE / 3, bottom + length + SIZE, shown.replace("\n", ""), 1.0, angle=60)
        else:
            drawing.text(place, bottom + length + GAP + SIZE * 0.8, shown, 0.5)
    for place, shown in y.marks():
        if lines:
            drawing.line([(x.start - length, place), (x.start, place)], FRAME, 0.8)
        drawing.text(x.start - length - GAP, place + SIZE * 0.36 - LINE * shown.count("\n") / 2, shown, 1.0)
    if lines:
        drawing.line([(x.start, min(y.start, y.end)), (x.start, bottom), (x.end, bottom)], FRAME, 0.8)


def draw_titles(drawing: Drawing, x: Scale, y: Scale, titles: tuple[str, str], below: float, left: float) -> None:
    """The axes' titles; `below` is the baseline of x's, `left` that of y's."""
    if titles[0]:
        drawing.text((x.start + x.end) / 2, below, titles[0], 0.5)
    if titles[1]:
        drawing.text(left, (y.start + y.end) / 2, titles[1], 0.5, angle=90)
