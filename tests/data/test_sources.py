"""One record of every source in its true schema, and what becomes of it."""

import json

import pytest
from benchmark_files import GSM8K_ANSWERS, arc, gsm8k, hotpot, math, math23k_text, strategyqa, svamp

from mtkv.config.data import SOURCES as SOURCE_NAMES
from mtkv.data.answers import AnswerError
from mtkv.data.loading import DataFileError
from mtkv.data.sources import DEFAULT_SOURCES, SOURCES, check_fields, source_of

EXTRA_SOURCES = ("gsm8k_aug", "gsm8k_aug_nl")


def test_the_config_names_the_sources():
    assert tuple(SOURCES) == SOURCE_NAMES
    assert set(SOURCES) - set(DEFAULT_SOURCES) == set(EXTRA_SOURCES)
    assert all(source_of(name, {}).name == source.name == name for name, source in SOURCES.items())
    assert [name for name, source in SOURCES.items() if source.language == "zh"] == ["math23k"]


def test_gsm8k():
    for record, answer in zip(gsm8k(6), GSM8K_ANSWERS.values(), strict=True):
        item = SOURCES["gsm8k"].item(record)
        assert (item.question, item.answer) == (record["question"], answer)
        assert "<<" not in item.reasoning
        assert "####" not in item.reasoning
        assert item.reasoning.endswith("pens. So it is.")
    with pytest.raises(AnswerError):
        SOURCES["gsm8k"].item({"question": "a", "answer": "no mark 5"})


@pytest.mark.parametrize("name", EXTRA_SOURCES)
def test_gsm8k_aug_keeps_its_equations(name):
    record = {"question": "Out of 600 …?", "cot": "<<600*30/100=180>> <<180*2=360>>", "answer": "360.0"}
    item = SOURCES[name].item(record)
    assert (item.reasoning, item.answer) == (record["cot"], "360")
    with pytest.raises(AnswerError):
        SOURCES[name].item(record | {"answer": "many"})


def test_svamp():
    items = [SOURCES["svamp"].item(record) for record in svamp(2)]
    assert [item.question for item in items] == [
        "Ann has 9 cards and gives 0 of them to her brother. How many cards has she left?",
        "Ann has 10 cards and gives 1 of them to her brother. How many cards has she left?",
    ]
    assert [(item.reasoning, item.answer) for item in items] == [("9 - 0 = 9", "9"), ("10 - 1 = 9", "9")]


def test_svamp_keeps_decimals_that_mean_something():
    record = svamp(1)[0] | {"Equation": "( ( 10.05 - 2.0 ) * 100.0 )", "Answer": 805.0}
    assert SOURCES["svamp"].item(record).reasoning == "( 10.05 - 2 ) * 100 = 805"


def test_strategyqa_facts_as_list_and_as_text():
    first, second = strategyqa(2)
    item = SOURCES["strategyqa"].item(first)
    assert (item.reasoning, item.answer) == ("Castle number 0 has a pool. A whale needs water.", "yes")
    assert SOURCES["strategyqa"].item(second | {"facts": "One. Two."}).reasoning == "One. Two."
    assert SOURCES["strategyqa"].item(second).answer == "no"


def test_math23k():
    records = [json.loads(text + "}") for text in math23k_text(5).split("}")[:5]]
    items = [SOURCES["math23k"].item(record) for record in records]
    assert [item.answer for item in items] == ["20", "45%", "1/2", "5/2", "0.3"]
    assert items[1].reasoning == "(1+3)-3=45%"
    assert items[0].question == "第0个盒子里有3个球，拿走3个，还剩几个？"


def test_math_takes_the_last_box():
    items = [SOURCES["math"].item(record) for record in math(5)]
    expected = [r"\frac{1}{2}", r"x^{2}+1", r"\left(0,\frac{\pi}{2}\right)", r"1{,}000", r"\text{(A)}"]
    assert [item.answer for item in items] == expected


def test_arc_with_letters_and_with_numbers():
    for record in arc(2):
        item = SOURCES["arc_challenge"].item(record)
        assert (item.answer, item.choices[item.gold], item.reasoning) == ("fire", "fire", "")
        assert item.question == f"{record['question']} Options: ice; fire; snow; milk"
    with pytest.raises(AnswerError, match="answerKey"):
        SOURCES["arc_challenge"].item(arc(1)[0] | {"answerKey": "E"})


def test_hotpotqa_in_both_shapes():
    for number, record in enumerate(hotpot(2)):
        item = SOURCES["hotpotqa"].item(record)
        assert (item.reasoning, item.answer) == (f"House {number} was built by Ann.", "Ann")


def test_another_schema_is_named():
    with pytest.raises(DataFileError, match="svamp: record 1 has no Equation; it has Body"):
        check_fields("svamp", [svamp(1)[0], {"Body": "x", "Question": "y", "Answer": 1}], SOURCES["svamp"].fields)
