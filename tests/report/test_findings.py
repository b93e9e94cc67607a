"""`mtkv summary`: what it says is what the comparison's own files say, for one study and for several."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from mtkv.cli import app
from mtkv.report.findings import NoFindingsError, five_lines, read_findings

EVIL = "<script>alert(1)</script> | [b]x[/b]"


def said(*arguments):
    result = CliRunner().invoke(app, ["summary", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.fixture
def done(tree, study, tmp_path):
    """The comparison of a study, as the stage leaves it."""
    folder = tmp_path / "pocket"
    shutil.copytree(tree / "compare", folder / "compare")
    (folder / "compare/study.json").write_text(study.model_dump_json())
    return folder


@pytest.fixture
def copy(done, tmp_path):
    """Another study whose first claim is hostile."""
    folder = tmp_path / "other"
    shutil.copytree(done, folder)
    claims = pd.read_parquet(folder / "compare/claims.parquet")
    claims.loc[0, "statement"] = EVIL
    claims.to_parquet(folder / "compare/claims.parquet")
    (folder / "compare/study.json").write_text(
        json.dumps(json.loads((done / "compare/study.json").read_text()) | {"study": "other"})
    )
    return folder


class Cells(HTMLParser):
    """The texts of all cells, row by row, and where links lead."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.links, self.tags = [], [], set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "a":
            self.links.append(dict(attributes)["href"])

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n ")


def test_five_lines_hold_every_student_and_every_claim_once(done, study):
    claims, cells = (pd.read_parquet(done / f"compare/{name}.parquet") for name in ("claims", "cells"))
    ranked, *verdicts, grade = five_lines(read_findings(done))
    macro = cells[(cells["dataset"] == "macro") & cells["mean"].notna()].set_index("arm")["mean"]
    students = [arm for arm, one in study.arms.items() if one.training or one.model == "student"]
    known = sorted((arm for arm in students if arm in macro), key=lambda arm: -macro[arm])
    assert set(known) < set(macro.index)  # teachers are no students
    assert ranked.split(": ")[1].split(" · ") == [f"{arm} {100 * macro[arm]:.1f}" for arm in known]
    for line, verdict in zip(verdicts, ("supported", "refuted", "undecided"), strict=True):
        names = list(claims[claims["verdict"] == verdict]["claim"])
        assert line.startswith(f"{verdict} ({len(names)}): ")
        told = line.split(": ", 1)[1]
        assert [part.split(" ")[0] for part in told.split(", ")] == (names or ["—"])
    assert json.loads((done / "compare/card.json").read_text())["result"]["grade"] in grade


def test_the_table_is_that_of_all_studies_in_a_terminal_in_markdown_and_as_a_page(done, copy, tmp_path):
    markdown, page = tmp_path / "claims.md", tmp_path / "claims.html"
    (copy / "report").mkdir()
    (copy / "report/index.html").write_text("the report")
    code, output = said(done, copy, "--markdown", markdown, "--html", page)
    assert code == 0, output
    claims = pd.read_parquet(done / "compare/claims.parquet")
    cells = Cells(page.read_text())
    head, *rows = cells.rows
    assert head == ["study", "claim", "estimate", "interval", "p (Holm)", "verdict"]
    statements = list(claims["statement"])
    assert [row[1] for row in rows] == [*statements, EVIL, *statements[1:]]
    assert [row[5] for row in rows] == 2 * list(claims["verdict"])
    assert [row[0] for row in rows] == ["pocket"] * len(claims) + ["other"] * len(claims)
    assert "script" not in cells.tags
    assert set(cells.links) == {(copy / "report/index.html").as_uri()}
    lines = markdown.read_text().splitlines()
    assert len(lines) == 2 + len(rows)
    assert EVIL not in markdown.read_text()
    assert "[b]x[/b]" in "".join(output.split())  # a cell is wrapped, never read as markup


def test_brief_is_five_lines_for_each_study(done, copy):
    code, output = said("--brief", done, copy)
    assert code == 0
    assert len(output.splitlines()) == 10


@pytest.mark.parametrize("spoil", ["missing", "broken", "of another shape"])
def test_a_folder_that_cannot_be_read_is_one_line_with_its_remedy(copy, spoil):
    study = copy / "compare/study.json"
    {
        "missing": lambda: (copy / "compare/claims.parquet").unlink(),
        "broken": lambda: study.write_text("{"),
        "of another shape": lambda: study.write_text('{"study": "x"}'),
    }[spoil]()
    with pytest.raises(NoFindingsError, match=f"{copy} has no comparison that can be read") as error:
        read_findings(copy)
    assert "snakemake --profile profiles/local" in str(error.value)
    code, output = said(copy)
    assert code == 2
    assert "Traceback" not in output


def test_make_study_ends_with_them():
    recipe = (Path(__file__).parents[2] / "Makefile").read_text().split("\nstudy:")[1].split("\n\n")[0]
    assert recipe.index("summary --brief results/pocket") < recipe.index("report/index.html")
