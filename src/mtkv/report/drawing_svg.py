"""A drawing as SVG text. Text stays text, so fonts (Chinese too) are those of the reader."""

from collections.abc import Callable
from html import escape
from typing import Any

from mtkv.report.drawing import Circle, Drawing, Label, Shape

ANCHORS = {0.0: "start", 0.5: "middle", 1.0: "end"}


def as_svg(drawing: Drawing, family: str) -> str:
    """The whole file."""
    size = f'width="{short(drawing.width)}pt" height="{short(drawing.height)}pt"'
    view = f'viewBox="0 0 {short(drawing.width)} {short(drawing.height)}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view} font-family="{family}, sans-serif">',
        f"<title>{escape(drawing.title)}</title>",
        f'<rect width="{short(drawing.width)}" height="{short(drawing.height)}" fill="#ffffff"/>',
        *(WRITERS[type(part)](part) for part in drawing.parts),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def short(value: float) -> str:
    """A number with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"


def _shape(part: Shape) -> str:
    path = "M" + "L".join(f"{short(x)} {short(y)}" for x, y in part.points) + ("Z" if part.closed else "")
    opacity = f' fill-opacity="{part.opacity:g}"' if part.opacity < 1 else ""
    dash = f' stroke-dasharray="{" ".join(map(short, part.dash))}"' if part.dash else ""
    return f'<path d="{path}"{_paint(part)}{opacity}{dash}/>'


def _circle(part: Circle) -> str:
    return f'<circle cx="{short(part.x)}" cy="{short(part.y)}" r="{short(part.radius)}"{_paint(part)}/>'


def _paint(part: Shape | Circle) -> str:
    stroke = f' stroke="{part.stroke}" stroke-width="{short(part.width)}"' if part.stroke else ""
    return f' fill="{part.fill or "none"}"{stroke}'


def _label(part: Label) -> str:
    place = f'x="{short(part.x)}" y="{short(part.y)}"'
    turn = f' transform="rotate({short(-part.angle)} {short(part.x)} {short(part.y)})"' if part.angle else ""
    anchor = f' text-anchor="{ANCHORS[part.anchor]}"' if part.anchor else ""
    return f'<text {place} font-size="{short(part.size)}" fill="{part.color}"{anchor}{turn}>{escape(part.text)}</text>'


WRITERS: dict[type, Callable[[Any], str]] = {Shape: _shape, Circle: _circle, Label: _label}
