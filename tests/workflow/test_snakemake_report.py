"""`snakemake --report` of a study whose report is there: one offline file with figures, tables, captions and labels."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import Environment, StrictUndefined

REPOSITORY = Path(__file__).parents[2]
CAPTIONS = REPOSITORY / "workflow/report"
FILES = {
    "index.html": "<p>the page</p>",
    "results.json": "{}",
    "comparison_report.md": "# study",
    "model_comparison.csv": "arm\nraw\n",
    "card.json": "{}",
    "figures/forest.svg": "<svg xmlns='http://www.w3.org/2000/svg'/>",
    "figures/heatmap-delta.svg": "<svg xmlns='http://www.w3.org/2000/svg'/>",
    "tables/headline.csv": "arm,macro\nraw,1\n",
    "tables/figure-bars.csv": "Arm\nraw\n",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The text of the file, and what Snakemake printed."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copy(REPOSITORY / "Snakefile", folder)
    for name in ("workflow", "config"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for name, text in FILES.items():
        path = folder / "results/pocket/report" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--report", "study.html", "--cores", "1"],
        cwd=folder,
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return (folder / "study.html").read_text(encoding="utf-8"), done.stderr


def test_figures_tables_and_numbers_are_in_it_with_category_and_label(made):
    page, said = made
    added = set(re.findall(r"Adding (\S+) ", said))
    assert added == {Path(name).name for name in FILES} - {"card.json", "figure-bars.csv"}
    for shown in ("Answer", "Figures", "Tables", "Numbers", "heatmap", "delta", "headline", "the whole report"):
        assert f'"{shown}"' in page, shown


def test_captions_and_the_introduction_are_in_it(made):
    page, _ = made
    for shown in ("Paired differences from the baseline with intervals", "smallest detectable difference", "tied set"):
        assert shown in page
    assert "A student learns from the keys and values" in page


def about(file, **wildcards):
    """A caption as Snakemake fills it in."""
    names = type("Wildcards", (), wildcards)
    template = Environment(undefined=StrictUndefined).from_string((CAPTIONS / file).read_text(encoding="utf-8"))
    return template.render(snakemake=type("Job", (), {"wildcards": names})).strip()


def figure_ids():
    """The first argument of every `Figure(…)` in the package: what a study could ever draw."""
    sources = (REPOSITORY / "src/mtkv/report/figures").glob("*.py")
    return {
        name
        for path in sources
        for name in re.findall(r"\b(?:Figure|forest_figure)\((?:\s*results,)?\s*\"(\w+)\"", path.read_text())
    }


def test_every_figure_has_a_caption():
    ids = figure_ids()
    assert len(ids) >= 20
    for name in ids:
        assert len(about("figure.rst", figure=name)) > 30, name
        assert about("figure.rst", figure=f"{name}-a-view") == about("figure.rst", figure=name)


def test_every_table_has_a_caption():
    for name in ("headline", "claims", "pairs", "matrix", "items"):
        assert len(about("table.rst", table=name)) > 80
