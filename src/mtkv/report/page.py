"""The stage `report`: one offline HTML page, its figures as SVG files and its tables as CSV, Markdown and LaTeX.

In: `results/<study>/` (compare, cards, logs). Out: `report/index.html`, `report/figures/`, `report/tables/`. Whatever comes from data is
escaped by Jinja or, in the JSON block, by `embedded_json`; scripts run only by the hashes in the page's content security policy.
"""

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mtkv.provenance.files import atomic_path, write_text
from mtkv.report.claims import claim_rows
from mtkv.report.figure import Figure
from mtkv.report.figures_alignment import alignment_figures
from mtkv.report.figures_cost import cost_figures
from mtkv.report.figures_pairs import pair_figures
from mtkv.report.figures_routing import routing_figures
from mtkv.report.figures_scores import score_figures
from mtkv.report.figures_training import training_figures
from mtkv.report.results import Results, read_results
from mtkv.report.strings import LANGUAGES
from mtkv.report.svg import still
from mtkv.report.tables import FORMATS, Table, claims_table, headline, headline_table, missing_cells, pairs_table

if TYPE_CHECKING:
    from mtkv.config.study import Study

FOLDER = Path(__file__).parent
FIGURES = (score_figures, pair_figures, training_figures, routing_figures, alignment_figures, cost_figures)
FIGURE_SECTIONS = ("plots", "training", "routing", "alignment", "cost")
SECTIONS = ("answer", "headline", *FIGURE_SECTIONS, "provenance", "methods")
METHODS = ("pairs", "intervals", "overlap", "undecided", "twin", "seeds", "missing", "scope")
SCRIPT_PARTS = ("state.js", "figures.js", "table.js", "cards.js", "page.js")
RUN_STAGES = ("arms/", "predictions/", "scores/")


def render(study: "Study", root: Path, output: Path) -> dict[str, Any]:
    """Stage function: write the page `output` of `root` (results/<study>), figures/ and tables/ beside it; returns sizes and counts.

    Raises FileNotFoundError when a file of `compare` is missing; everything else may be absent and is named on the page.
    """
    results = read_results(study, root)
    figures = [figure for build in FIGURES for figure in build(results)]
    stills = {figure.id: still(figure) for figure in figures}
    page = page_html(results, figures, stills, synthetic=study.data.mixture == "pocket")
    write_text(output, page)
    files = _write_figures(figures, stills, output.parent / "figures")
    tables = _write_tables(results, figures, output.parent / "tables")
    return {
        "bytes": len(page.encode()),
        "figures": files,
        "tables": tables,
        "plotly": plotly.__version__,
        "absent": results.absent,
        "missing_cells": missing_cells(headline(results)),
    }


def page_html(results: Results, figures: list[Figure], stills: dict[str, str], synthetic: bool) -> str:
    """The whole page."""
    words = LANGUAGES["en"]
    scripts = [get_plotlyjs().replace("\r\n", "\n"), page_script()]
    data = {
        "arms": results.arms,
        "datasets": results.datasets,
        "seeds": results.seeds,
        "baseline": results.baseline,
        "strings": words,
        "figures": [figure.payload() for figure in figures],
        "cards": {key: card for key, card in results.cards.items() if key.startswith(RUN_STAGES)},
    }
    rows = headline(results)
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            t=words,
            results=results,
            synthetic=synthetic,
            claims=claim_rows(results),
            rows=rows,
            missing=missing_cells(rows),
            sections=SECTIONS,
            figure_sections=FIGURE_SECTIONS,
            methods=METHODS,
            figures={name: [figure for figure in figures if figure.section == name] for name in FIGURE_SECTIONS},
            stills={key: image_url(text) for key, text in stills.items()},
            stage_cards={key: pretty(card) for key, card in results.cards.items() if not key.startswith(RUN_STAGES)},
            css=Markup(static("report.css")),
            scripts=[Markup(script) for script in scripts],
            policy=content_policy(scripts),
            data=Markup(embedded_json(data)),
        )
    )


@cache
def environment() -> Environment:
    """Jinja with escaping on and undefined names refused."""
    return Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page_script() -> str:
    """The page's own script: the parts in static/ inside one function."""
    return '(() => {\n"use strict";\n' + "\n".join(static(name) for name in SCRIPT_PARTS) + "})();\n"


def static(name: str) -> str:
    """Text of a file in static/."""
    return (FOLDER / "static" / name).read_text(encoding="utf-8")


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


def _write_figures(figures: list[Figure], stills: dict[str, str], folder: Path) -> int:
    """The SVG files of every figure; the folder is replaced, so no file of an earlier study stays."""
    drawn: dict[str, str] = {}
    for figure in figures:
        for view, _ in figure.views[: figure.stills] or [("", "")]:
            first = not figure.views or view == figure.views[0][0]
            name = f"{figure.id}-{view.replace(' · ', '-')}" if figure.views else figure.id
            drawn[f"{name}.svg"] = stills[figure.id] if first else still(figure, view)
    _write_folder(folder, drawn)
    return len(drawn)


def _write_tables(results: Results, figures: list[Figure], folder: Path) -> int:
    tables = [headline_table(headline(results)), claims_table(results), pairs_table(results)]
    tables += [Table(f"figure-{figure.id}", figure.header, figure.rows) for figure in figures]
    written = {f"{t.id}.{suffix}": form(t.header, t.rows) for t in tables for suffix, form in FORMATS.items()}
    _write_folder(folder, written)
    return len(tables)


def _write_folder(folder: Path, files: dict[str, str]) -> None:
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8")
