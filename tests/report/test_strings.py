"""One catalogue holds every fixed word of the report, each in English and Chinese."""

import ast
import html
import re
from itertools import chain
from pathlib import Path

import pytest
import yaml

import mtkv.report
import mtkv.stats
from mtkv.report.figures.all import FIGURE_SECTIONS, all_figures
from mtkv.report.strings import CATALOGUE, FACT, LANGUAGES, PHRASES, Words, chinese, listed, page_phrases, retold, say
from mtkv.report.summary import UNITS
from mtkv.stages.report import METHODS, SECTIONS, phrases
from mtkv.stats.claims.verdicts import Evidence, judge
from mtkv.stats.translatable import both, no_result, packed, tell

FOLDER = Path(mtkv.report.__file__).parent
CHINESE = re.compile("[\u4e00-\u9fff\uff00-\uffef]")  # letters and punctuation
SAME = {"n", "p"}  # symbols
CONFIGS = [*sorted(FOLDER.parents[2].glob("config/**/*.yaml")), Path(__file__).parents[1] / "classic_study.yaml"]
# What stays English in Chinese: names of models and settings, symbols, units.
LATIN = re.compile(r"[A-Za-z_][\w.]*")
TERMS = {
    "KV",
    "Holm",
    "ln",
    "n",
    "p",
    "K",
    "V",
    "GPU",
    "MB",
    "extra",
    "br",
    "x",
    "y",
    "z",
    "r",
    "theta",
    "fullData",
    "name",
    "text",
    "delta",
}


def templates(folder: Path, function: str) -> set[str]:
    """The first arguments of all calls of `function` in a package, each written out in full, or one of two."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == function:
                choices = (
                    [node.args[0].body, node.args[0].orelse] if isinstance(node.args[0], ast.IfExp) else [node.args[0]]
                )
                found |= {choice.value for choice in choices if isinstance(choice, ast.Constant)}
    return found


@pytest.mark.parametrize("key", sorted(CATALOGUE["words"]))
def test_every_key_has_both_languages_and_the_same_facts(key):
    text = CATALOGUE["words"][key]
    assert set(text) == {"en", "zh"}
    assert text["en"].strip()
    assert CHINESE.search(text["zh"]) or text["en"] in SAME
    assert not CHINESE.search(text["en"])
    assert sorted(FACT.findall(text["en"])) == sorted(FACT.findall(text["zh"]))


def test_every_phrase_has_chinese_with_the_same_facts():
    for english, text in (CATALOGUE["phrases"] | CATALOGUE["studies"]).items():
        assert CHINESE.search(text) or english in SAME, english
        assert sorted(FACT.findall(english)) == sorted(FACT.findall(text)), english
        assert re.findall(r"%\{[^}]*\}", english) == re.findall(r"%\{[^}]*\}", text), english


def test_the_page_uses_every_word_and_no_other():
    used = {*SECTIONS, *FIGURE_SECTIONS, *(f"m.{name}" for name in METHODS)}
    for path in [*FOLDER.glob("templates/*"), *FOLDER.glob("static/*.js"), FOLDER.parent / "stages/report.py"]:
        if path.name != "plotly.min.js":
            text = path.read_text(encoding="utf-8")
            used |= {a or b for a, b in re.findall(r"""\bt\[["']([\w.]+)["']\]|word\("([\w.]+)\"""", text)}
            used |= set(re.findall(r'"(items\.\w+)"', text))
            used |= set(re.findall(r'filter_group\("(\w+)"', text))
    assert used == set(LANGUAGES["en"])


def test_every_sentence_that_a_figure_makes_is_in_the_catalogue():
    said = templates(FOLDER, "say") | templates(FOLDER.parent / "study_diff", "say")
    said |= {text for unit in UNITS.values() for text in (unit.shown, unit.relation)}
    assert len(said) > 15
    assert {text for text in said if re.search("[A-Za-z]{2}", FACT.sub("", text))} <= set(PHRASES)


def test_every_sentence_of_the_statistics_is_in_the_catalogue():
    told = templates(Path(mtkv.stats.__file__).parent, "tell") | templates(FOLDER.parent / "study_diff", "tell")
    assert len(told) > 30
    assert told <= set(PHRASES)
    assert {text for text in PHRASES if "control twin" in text and FACT.search(text)} <= told | templates(FOLDER, "say")


def test_the_statements_and_descriptions_of_the_studies_are_in_the_catalogue():
    said = {text for path in CONFIGS for text in statements(yaml.safe_load(path.read_text(encoding="utf-8")))}
    assert len(CONFIGS) > 5
    assert said == set(CATALOGUE["studies"])


def statements(tree):
    """Every `statement` and `description` in a config."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from [value] if key in ("statement", "description") and isinstance(value, str) else statements(value)


def test_facts_are_filled_in_and_translated_and_sums_keep_both_languages():
    made = say("Highest: {best}.", best="a") + say(" No run used a GPU.") + "!"
    assert (str(made), made.chinese) == ("Highest: a. No run used a GPU.!", "Highest: a.没有运行使用 GPU。!")
    title = say(" Clear macro differences: {arms}.", arms="{x}")
    assert (str(title), title.chinese) == (" Clear macro differences: {x}.", "明确的宏平均差异：{x}。")
    assert say("{word}", word="Step").chinese == "步数"
    assert isinstance(title.strip(), Words)
    assert (chinese("Step"), chinese("no such words")) == ("步数", "no such words")
    assert not any(FACT.search(english) for english in page_phrases())
    assert [str(listed(["a", "b"])), listed(["Step", say("seed {seed}", seed=1)], "; ").chinese] == [
        "a, b",
        "步数; 种子 1",
    ]


def test_names_of_arms_and_datasets_are_not_translated():
    assert phrases([])["Step"] == "步数"
    assert "Step" not in phrases([], names={"Step"})


def test_what_a_chinese_reader_sees_of_a_figure_holds_no_english(full):
    known = phrases(all_figures(full), names={*full.arms, *full.datasets})
    left = {}
    for figure in all_figures(full):
        for text in figure.texts():
            shown = html.unescape(known.get(text, text).replace("_<br>", "_"))
            words = set(LATIN.findall(re.sub(r"<[^>]*>|%?\{[^}]*\}", " ", shown))) - TERMS
            left |= {word: (figure.id, text) for word in words if not is_name(word, full)}
    assert left == {}


def is_name(word, full):
    """Arms, datasets, teachers, settings (`kv.loss.layers`), files, and what the made-up tokens and failures say."""
    teachers = {name.split("/")[0] for name in full.examples}
    names = {*full.arms, *full.datasets, *teachers, *re.findall(r"\w+", " ".join(chain(*full.changes.values())))}
    return word in names or "." in word or word in {"seeds", "of", "failed", "tables"}


EVIDENCE = Evidence(
    tell("{items} items, {seeds} seeds", items=4, seeds=3), 1.0, delta=2.0, low=1.5, high=3.0, p=0.01, mdd=0.7
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"inclusive": True},
        {"low": 0.0, "high": 0.5},
        {"low": 0.0},
        {"p": 0.2},
        {"upper": 4.0},
        {"upper": 4.0, "low": 5.0, "high": 6.0},
        {"unmet": tell("its twin {twin} is no control arm", twin="sft")},
        {"contradicted": tell("it is worse than its control twin {twin}", twin="sft")},
        {"missing": both([no_result("sft", tell("no scores file")), no_result("raw", tell("no scores file"))])},
    ],
)
def test_verdicts_are_retold_in_chinese_from_the_table(changes):
    evidence = EVIDENCE.with_(**changes)
    _, why = judge(evidence, evidence.p, 0.05)
    told = retold(str(why), packed(why))
    assert str(told) == str(why)
    assert set(LATIN.findall(told.chinese)) <= {"Holm", "p", "sft", "raw"}
    assert re.findall(r"\d+(?:\.\d+)?", told.chinese) == re.findall(r"\d+(?:\.\d+)?", why)


def test_reasons_of_older_tables_and_of_other_hands_stay_as_they_are():
    assert (retold("Because.", None), retold(None, None), retold(float("nan"), None)) == ("Because.", "", "")
    assert retold("Because.", float("nan")) == "Because."
    other = retold("Edited by hand.", packed(tell("no scores file")))
    assert (other, chinese(other)) == ("Edited by hand.", "Edited by hand.")
    assert chinese(retold("out of memory", packed("out of memory"))) == "out of memory"
