"""The stage `report`: one offline HTML page, its figures as SVG and PDF files and its tables as CSV, Markdown and LaTeX.

In: `results/<study>/` (compare, cards, logs). Out: `report/index.html`, `report/figures/`, `report/tables/`. Whatever comes from data is
escaped by Jinja or, in the JSON blocks, by `embedded_json`; scripts run only by the hashes in the page's content security policy.
"""

import re
from collections.abc import Collection, Iterable
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mtkv.provenance.files import write_text
from mtkv.report.figures.all import FIGURE_SECTIONS, OPTIONAL_SECTIONS, all_figures
from mtkv.report.figures.figure import Figure
from mtkv.report.item_browser import item_browser, item_rows
from mtkv.report.page import (
    content_policy,
    embedded_json,
    environment,
    image_url,
    page_script,
    plotly_script,
    pretty,
    static,
    write_folder,
    write_summaries,
    write_tables,
)
from mtkv.report.results import Results, read_results
from mtkv.report.static_figures import Picture, picture
from mtkv.report.strings import LANGUAGES, Words, chinese, page_phrases, say
from mtkv.report.summary import claim_rows, claim_texts
from mtkv.report.tables import headline, missing_cells

SECTIONS = ("answer", "headline", *FIGURE_SECTIONS, "items", "provenance", "methods")
METHODS = ("pairs", "intervals", "overlap", "undecided", "twin", "seeds", "missing", "scope")
RUN_STAGES = ("arms/", "predictions/", "scores/", "latents/")
STATIC_ITEMS = 20
SEPARATORS = re.compile(r" · |[^\w.+-]+")

if TYPE_CHECKING:
    from mtkv.config.study import Study


def render(study: "Study", root: Path, output: Path) -> dict[str, Any]:
    """Stage function: write the page `output` of `root` (results/<study>) and its files beside it; returns sizes and counts.

    Raises FileNotFoundError when a file of `compare` is missing; everything else may be absent and is named on the page.
    """
    results = read_results(study, root)
    figures = all_figures(results, study.report.figures)
    browser = item_browser(results)
    pictures = {figure.id: picture(figure) for figure in figures}
    page = page_html(results, figures, pictures, study.data.mixture == "pocket", browser)
    write_text(output, page)
    files = _write_figures(figures, pictures, output.parent / "figures")
    tables = write_tables(results, figures, browser, output.parent / "tables")
    write_summaries(results, output.parent)
    return {
        "bytes": len(page.encode()),
        "figures": files,
        "tables": tables,
        "absent": results.absent,
        "missing_cells": missing_cells(headline(results)),
    }


def page_html(
    results: Results,
    figures: list[Figure],
    pictures: dict[str, Picture],
    synthetic: bool,
    browser: dict[str, Any] | None,
) -> str:
    """The whole page; `pictures`: each figure's first view, `browser`: what `item_browser` found."""
    claims, rows = claim_rows(results), headline(results)
    left_out = OPTIONAL_SECTIONS - {figure.section for figure in figures}
    missing = missing_cells(rows)
    item_note = say(LANGUAGES["en"]["items.note"], cap=browser["cap"], chars=browser["chars"]) if browser else ""
    known = phrases(figures, [item_note, *claim_texts(claims), *missing], {*results.arms, *results.datasets})
    scripts = [plotly_script(), page_script()]
    islands = {
        "data": {
            "arms": results.arms,
            "datasets": results.datasets,
            "seeds": results.seeds,
            "baseline": results.baseline,
            "words": LANGUAGES,
            "phrases": known,
            "figures": [figure.payload() for figure in figures],
        },
        "cards": {key: card for key, card in results.cards.items() if key.startswith(RUN_STAGES)},
        "item-browser-data": browser,
    }
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            t=LANGUAGES["en"],
            results=results,
            synthetic=synthetic,
            claims=claims,
            rows=rows,
            missing=missing,
            said=known,
            sections=[name for name in SECTIONS if name not in left_out],
            figure_sections=[name for name in FIGURE_SECTIONS if name not in left_out],
            methods=METHODS,
            figures={name: [figure for figure in figures if figure.section == name] for name in FIGURE_SECTIONS},
            stills={key: image_url(first.svg) for key, first in pictures.items()},
            item_note=item_note,
            item_rows=list(islice(item_rows(browser), STATIC_ITEMS)) if browser else [],
            stage_cards={key: pretty(card) for key, card in results.cards.items() if not key.startswith(RUN_STAGES)},
            css=Markup(static("report.css")),
            scripts=[Markup(script) for script in scripts],
            policy=content_policy(scripts),
            islands={name: Markup(embedded_json(value)) for name, value in islands.items()},
        )
    )


def phrases(figures: Iterable[Figure], others: Iterable[str] = (), names: Collection[str] = ()) -> dict[str, str]:
    """English → Chinese of everything the page says: the catalogue, and what figures and `others` say with facts in it.

    `names` of arms and datasets stay as they are, whatever they mean in English.
    """
    texts = chain(others, *(figure.texts() for figure in figures))
    made = {str(text): chinese(text) for text in texts if isinstance(text, Words)}
    return {
        english: text for english, text in (page_phrases() | made).items() if english not in names and english != text
    }


def _write_figures(figures: list[Figure], pictures: dict[str, Picture], folder: Path) -> int:
    """SVG and PDF of the stills of every figure; returns their number. The folder is replaced, so no file of an earlier study stays."""
    drawn: dict[str, Picture] = {}
    for figure in figures:
        for view, _ in figure.views[: figure.stills] or [("", "")]:
            first = not figure.views or view == figure.views[0][0]
            name = f"{figure.id}-{SEPARATORS.sub('-', view)}" if figure.views else figure.id
            drawn[name] = pictures[figure.id] if first else picture(figure, view)
    files = {f"{name}.svg": [one.svg.encode()] for name, one in drawn.items()}
    write_folder(folder, files | {f"{name}.pdf": [one.pdf] for name, one in drawn.items()})
    return len(drawn)
