"""What makes the page one safe file: its scripts, data inside script elements, pictures as URLs, and the content security policy."""

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path(__file__).parent
SCRIPT_PARTS = ("state.js", "language.js", "figures.js", "drawing.js", "table.js", "cards.js", "items.js", "page.js")


@cache
def environment() -> Environment:
    """Jinja with escaping on; undefined names are errors."""
    return Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def static(name: str) -> str:
    """Text of a file in static/."""
    return (FOLDER / "static" / name).read_text(encoding="utf-8")


def plotly_script() -> str:
    """Plotly's library with only the trace types that the report draws (see bundle/)."""
    return static("plotly.min.js")


def page_script() -> str:
    """The page's own script: the parts in static/ inside one function."""
    return '(() => {\n"use strict";\n' + "\n".join(static(name) for name in SCRIPT_PARTS) + "})();\n"


def content_policy(scripts: list[str]) -> str:
    """Content security policy under which only `scripts` run and nothing is loaded from anywhere."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"


def embedded_json(value: Any) -> str:
    """JSON that is safe inside a script element: no `<`, `>`, `&` and no line separators of JavaScript."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def image_url(svg: str) -> str:
    """An SVG as data URL."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def pretty(card: dict[str, Any]) -> str:
    """A card as readable JSON."""
    return json.dumps(card, indent=2, ensure_ascii=False)
