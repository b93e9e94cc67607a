"""The report's files beside the page: figures as SVG and PDF, tables as CSV, Markdown and LaTeX, results.json and two summaries.

In: `Results`, the figures and the SVG text of each figure's first view. Out: files under the report's folder; `figures/` and `tables/`
are replaced, so that no file of an earlier study stays.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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
