"""One catalogue holds every fixed word of the report, each in English and Chinese."""

import ast
import re
from pathlib import Path

import pytest

import mtkv.report
from mtkv.report.figures import FIGURE_SECTIONS, all_figures
from mtkv.report.page import METHODS, SECTIONS, phrases
from mtkv.report.strings import CATALOGUE, FACT, LANGUAGES, PHRASES, Words, chinese, page_phrases, say

FOLDER = Path(mtkv.report.__file__).parent
CHINESE = re.compile("[\u4e00-\u9fff]")
SAME = {"n", "p"}  # symbols


@pytest.mark.parametrize("key", sorted(CATALOGUE["words"]))
def test_every_key_has_both_languages_and_the_same_facts(key):
    text = CATALOGUE["words"][key]
    assert set(text) == {"en", "zh"}
    assert text["en"].strip()
    assert CHINESE.search(text["zh"]) or text["en"] in SAME
    assert not CHINESE.search(text["en"])
    assert sorted(FACT.findall(text["en"])) == sorted(FACT.findall(text["zh"]))


def test_every_phrase_has_chinese_with_the_same_facts():
    for english, text in CATALOGUE["phrases"].items():
        assert CHINESE.search(text) or english in SAME, english
        assert sorted(FACT.findall(english)) == sorted(FACT.findall(text)), english
        assert re.findall(r"%\{[^}]*\}", english) == re.findall(r"%\{[^}]*\}", text), english


def test_the_page_uses_every_word_and_no_other():
    used = {*SECTIONS, *FIGURE_SECTIONS, *(f"m.{name}" for name in METHODS)}
    for path in [*FOLDER.glob("templates/*"), *FOLDER.glob("static/*.js"), FOLDER / "page.py"]:
        if path.name != "plotly.min.js":
            text = path.read_text(encoding="utf-8")
            used |= {a or b for a, b in re.findall(r"""\bt\[["']([\w.]+)["']\]|word\("([\w.]+)\"""", text)}
            used |= set(re.findall(r'"(items\.\w+)"', text))
            used |= set(re.findall(r'filter_group\("(\w+)"', text))
    assert used == set(LANGUAGES["en"])


def test_every_sentence_that_a_figure_makes_is_in_the_catalogue():
    said = {
        node.args[0].value
        for path in FOLDER.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "say"
        and isinstance(node.args[0], ast.Constant)
    }
    assert len(said) > 15
    assert said <= set(PHRASES)


def test_every_figure_is_said_in_chinese(full):
    teachers = {name.split("/")[0] for name in full.examples}
    names = {*full.arms, *full.datasets, *teachers, *full.training["term"], *SAME}
    known = phrases(all_figures(full))
    left = set()
    for figure in all_figures(full):
        left |= {text for text in figure.texts() if not CHINESE.search(known.get(text, ""))}
    assert {text for text in left - names if " · " not in text} == set()  # "map · kind" and "arm · teacher" are names


def test_facts_are_filled_in_and_translated_and_sums_keep_both_languages():
    made = say("Highest: {best}.", best="a") + say(" No run used a GPU.") + "!"
    assert (str(made), made.chinese) == ("Highest: a. No run used a GPU.!", "Highest: a.没有运行使用 GPU。!")
    title = say(" Clear macro differences: {arms}.", arms="{x}")
    assert (str(title), title.chinese) == (" Clear macro differences: {x}.", "明确的宏平均差异：{x}。")
    assert say("{word}", word="Step").chinese == "步数"
    assert isinstance(title.strip(), Words)
    assert (chinese("Step"), chinese("no such words")) == ("步数", "no such words")
    assert not any(FACT.search(english) for english in page_phrases())
