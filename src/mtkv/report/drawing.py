"""What a still picture consists of: lines, areas, circles and texts, in points from the top left corner."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Point = tuple[float, float]
INK = "#1A1D21"


class Shape(NamedTuple):
    """Straight lines through points. `stroke` and `fill` are `#rrggbb` or empty; `width` and `dash` are points, `opacity` is the fill's."""

    points: list[Point]
    stroke: str = ""
    fill: str = ""
    width: float = 1.0
    dash: tuple[float, ...] = ()
    closed: bool = False
    opacity: float = 1.0


class Circle(NamedTuple):
    """A circle around (x, y)."""

    x: float
    y: float
    radius: float
    stroke: str = ""
    fill: str = ""
    width: float = 1.0


class Label(NamedTuple):
    """One line of text whose baseline begins (`anchor` 0), has its middle (0.5) or ends (1) at (x, y), turned left by `angle` degrees."""

    x: float
    y: float
    text: str
    anchor: float = 0.0
    size: float = 9.0
    angle: float = 0.0
    color: str = INK


Part = Shape | Circle | Label


@dataclass
class Drawing:
    """A picture of `width` × `height` points; later parts cover earlier ones."""

    width: float
    height: float
    title: str
    parts: list[Part] = field(default_factory=list)

    def line(self, points: Sequence[Point], color: str, width: float = 1.0, dash: tuple[float, ...] = ()) -> None:
        """A line through points."""
        self.parts.append(Shape(list(points), stroke=color, width=width, dash=dash))

    def area(
        self, points: Sequence[Point], fill: str, opacity: float = 1.0, stroke: str = "", width: float = 0.3
    ) -> None:
        """A filled polygon."""
        self.parts.append(Shape(list(points), stroke, fill, width, closed=True, opacity=opacity))

    def box(self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "") -> None:
        """A filled rectangle; negative sizes go left and up."""
        self.area([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], fill, stroke=stroke)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        anchor: float = 0.0,
        size: float = 9.0,
        angle: float = 0.0,
        color: str = INK,
    ) -> None:
        """Lines of text; the first baseline is at y."""
        for i, line in enumerate(text.split("\n")):
            self.parts.append(Label(x, y + 1.2 * size * i, line, anchor, size, angle, color))
