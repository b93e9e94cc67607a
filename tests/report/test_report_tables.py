"""CSV, Markdown and LaTeX of the tables, and the SVG files."""

import csv
import html
import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pandas as pd
import pyarrow.csv
import pytest
from markupsafe import escape

from mtkv.report.figures.figure import number, p_text, text
from mtkv.report.figures.scores import runs
from mtkv.report.item_browser import ITEM_HEADER, item_rows
from mtkv.report.page import environment, write_folder
from mtkv.report.strings import LANGUAGES
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


SAID = [
    "—",
    "−5",
    "a\rb",
    "a\r\nb\n",
    "x\0y",
    "\x1b[31mred",
    "tab\there",
    'he said "hi", |',
    "\x85\u2028",
    "&lt; \\",
    "",
    " ",
]


@pytest.fixture
def items(tmp_path):
    """items.csv, items.md and items.tex of one item per text of `SAID`, which is question, gold and both answers."""
    places = range(len(SAID))
    shown = [[f"i{n}", 1.0, 0.0, 42, 42, n, n] for n in places]
    one = {"arm": "kv", "other": "sft", "dataset": "gsm8k", "shown": shown}
    browser = {"lists": [one], "questions": {"gsm8k": {f"i{n}": [n, n] for n in places}}, "texts": SAID}
    rows = list(item_rows(browser))
    forms = {"csv": as_csv, "md": as_markdown, "tex": as_latex}
    write_folder(tmp_path / "t", {f"items.{end}": [form(ITEM_HEADER, rows).encode()] for end, form in forms.items()})
    return tmp_path / "t"


def test_answers_with_any_character_come_back_from_the_csv_file(items):
    expected = [["kv", "sft", "gsm8k", f"i{n}", "1", "0", *[said] * 4] for n, said in enumerate(SAID)]
    with (items / "items.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [ITEM_HEADER, *expected]
    strings = dict.fromkeys(ITEM_HEADER, "string")
    table = pyarrow.csv.read_csv(
        items / "items.csv",
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=strings),
    )
    assert [list(row.values()) for row in table.to_pylist()] == expected
    frame = pd.read_csv(items / "items.csv", dtype=str, keep_default_na=False)
    seen = [[cell.split("\0")[0] for cell in row] for row in expected]  # pandas' own reader ends a text at NUL
    assert [[cell.split("\0")[0] for cell in row] for row in frame.to_numpy().tolist()] == seen


def test_answers_with_any_character_keep_the_rows_of_the_other_tables(items):
    lines = (items / "items.md").read_bytes().decode().splitlines()
    assert len(lines) == 2 + len(SAID)
    for said, line in zip(SAID, lines[2:], strict=True):
        cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
        assert len(cells) == 10
        # HTML knows no NUL, and reads the number 133 as an ellipsis.
        back = re.sub("&#(\\d+);", lambda found: chr(int(found[1])), re.sub(r"\\(.)", r"\1", cells[-1]))
        assert html.unescape(back.replace("&#", "&amp;#")) == said
    tex = (items / "items.tex").read_bytes().decode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", tex)
    assert [line.count(" & ") for line in tex.split("\n")[4:-3]] == [9] * len(SAID)
    assert r"\textasciicircum{}[[31mred" in tex


def test_a_reason_that_quotes_an_answer_is_kept_in_both_languages(full):
    """lm-eval's messages repeat what a model said."""
    arm, name = full.arms[0], full.datasets[0]
    seed = full.runs_of(arm)[0]
    said = "failed: of '\u22125' and '—'"
    card = full.cards["compare"]
    known = card["result"] | {"missing": {f"{arm}/seed{seed}/{name}": said}}
    scores = full.seed_scores
    left = scores[(scores["arm"] != arm) | (scores["dataset"] != name)]
    told = replace(full, cards=full.cards | {"compare": card | {"result": known}}, seed_scores=left)
    figure = runs(told)
    (row,) = (row for row in figure.rows if row[:2] == [arm, name])
    assert said in row[-1]
    assert row[-1].chinese != str(row[-1])
    assert said in as_csv(figure.header, [row])
    html = environment().from_string(
        "{% from 'macros.html.j2' import figure_block %}{{ figure_block(f, t, '', said) }}"
    )
    page = html.render(f=figure, t=LANGUAGES["en"], said={str(row[-1]): row[-1].chinese})
    assert f"<td data-verbatim data-say>{escape(row[-1])}</td>" in page


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
