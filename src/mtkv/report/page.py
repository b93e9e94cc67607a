"""What makes the page one safe file, and writes the files beside it.

The page has its scripts, data inside script elements, pictures as URLs, and the content security policy. Beside it: figures as SVG and
PDF, tables as CSV, Markdown and LaTeX, results.json and two summaries; `figures/` and `tables/` are replaced, so that no file of an
earlier study stays.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mtkv.provenance.files import atomic_path, write_json, write_text
from mtkv.report.figures.figure import Figure
from mtkv.report.item_browser import ITEM_HEADER, item_rows
from mtkv.report.results import Results
from mtkv.report.summary import comparison_report, results_json
from mtkv.report.tables import (
    FORMATS,
    Table,
    as_csv,
    claims_table,
    headline,
    headline_table,
    matrix_csv,
    matrix_table,
    models_table,
    pairs_table,
)

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


def write_tables(results: Results, figures: list[Figure], browser: dict[str, Any] | None, folder: Path) -> int:
    """tables/: the study's tables and those of the figures; returns their number."""
    tables = [headline_table(headline(results)), claims_table(results), pairs_table(results), matrix_table(results)]
    tables += [Table("items", ITEM_HEADER, list(item_rows(browser)))] if browser else []
    tables += [Table(f"figure-{figure.id}", figure.header, figure.rows) for figure in figures]
    written = {
        f"{t.id}.{suffix}": [form(t.header, t.rows).encode()] for t in tables for suffix, form in FORMATS.items()
    }
    write_folder(folder, written | {"matrix.csv": matrix_csv(results)})
    return len(tables)


def write_summaries(results: Results, folder: Path) -> None:
    """results.json, comparison_report.md and model_comparison.csv."""
    write_json(folder / "results.json", results_json(results))
    write_text(folder / "comparison_report.md", comparison_report(results))
    models = models_table(results)
    write_text(folder / "model_comparison.csv", as_csv(models.header, models.rows))


def write_folder(folder: Path, files: Mapping[str, Iterable[bytes]]) -> None:
    """Replace a folder by just these files (name → parts of its content)."""
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        for name, parts in files.items():
            with (temporary / name).open("wb") as file:
                file.writelines(parts)
