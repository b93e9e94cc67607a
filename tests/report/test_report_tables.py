"""CSV, Markdown and LaTeX of the tables, and the SVG files."""

import csv
import io
import xml.etree.ElementTree as ElementTree

import pandas as pd
import pytest

from mtkv.report.figure import number, p_text, text
from mtkv.report.tables import as_csv, as_latex, as_markdown


def test_headline_files_hold_the_cells(rendered, tree):
    cells = pd.read_parquet(tree / "compare/cells.parquet").set_index(["arm", "dataset"])
    rows = list(csv.reader(io.StringIO((rendered[0] / "tables/headline.csv").read_text())))
    header, *body = rows
    assert body[0][0] == "sft"  # the baseline is pinned
    assert len(body) == len(set(cells.index.get_level_values("arm")))
    for row in body:
        for name, shown in zip(header[1:], row[1:], strict=True):
            cell = cells.loc[row[0], name]
            if cell["status"] == "ok":
                assert float(shown.split()[0]) == pytest.approx(cell["mean"] * 100, abs=0.0501)
            else:
                assert shown == "missing"


def test_pairs_file_holds_points_with_plain_minus_signs(rendered, tree):
    key = ["arm", "baseline", "dataset"]
    pairs = pd.read_parquet(tree / "compare/pairs.parquet").set_index(key)["delta"]
    frame = pd.read_csv(rendered[0] / "tables/pairs.csv").set_index(key)["delta"]
    assert frame.isna().sum() == pairs.isna().sum() > 0
    pd.testing.assert_series_equal(frame.sort_index(), pairs.sort_index() * 100, atol=0.0051, rtol=0)


def test_formats_escape():
    header, rows = ["a|b", "50 %"], [["x_1", "−3.0"], ["<b>", 'say "hi", you']]
    assert list(csv.reader(io.StringIO(as_csv(header, rows)))) == [header, ["x_1", "-3.0"], rows[1]]
    assert as_csv(["a", "b"], [["—", "x — y"]]) == "a,b\n,x — y\n"
    assert as_markdown(header, rows).splitlines()[0] == "| a\\|b | 50 % |"
    assert "&lt;b>" in as_markdown(header, rows)
    assert as_latex(header, rows).splitlines() == [
        r"\begin{tabular}{lr}", r"\toprule", r"a|b & 50 \% \\", r"\midrule", r"x\_1 & $-$3.0 \\", r'<b> & say "hi", you \\', r"\bottomrule",
        r"\end{tabular}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "—"), (float("nan"), "—"), (-0.04, "0.0"), (-1.25, "−1.2"), (3, "+3.0"), (0, "0.0")]
)
def test_text_of_numbers(value, expected):
    assert text(value, sign=True) == expected


def test_p_values_and_significant_digits():
    assert [p_text(p) for p in (0.0004, 0.0321, 1.0, None)] == ["<0.001", "0.032", "1.000", "—"]
    assert number(123456.789, 4) == 123500.0
    assert number(float("inf")) is None


def test_every_figure_is_a_file_of_valid_svg(rendered):
    files = sorted((rendered[0] / "figures").glob("*.svg"))
    assert len(files) == rendered[1]["figures"] >= 15
    for path in files:
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert list(root.iter("{http://www.w3.org/2000/svg}text")), path.name
