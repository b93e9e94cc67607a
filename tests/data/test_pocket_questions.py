"""Every question is solved again from its words alone: by sympy, by calendar arithmetic, or from facts written down here."""

import re
from collections.abc import Callable
from random import Random

import pytest
import sympy

from mtkv.data.items import Item
from mtkv.data.pocket import TASKS, pocket_task

DRAWS = 150
FACTS = """force newton, energy joule, power watt, pressure pascal, charge coulomb, voltage volt, resistance ohm,
current ampere, frequency hertz, temperature kelvin, H hydrogen, He helium, C carbon, N nitrogen, O oxygen, Na sodium,
K potassium, Fe iron, Cu copper, Ag silver, Au gold, Pb lead, blood/pumps heart, air lungs, blood/filters kidney,
food stomach, body brain, bile liver, light eye, sound ear"""
SCIENCE = dict(pair.split() for pair in FACTS.replace("\n", " ").split(", "))
KINDS = """whale mammal, dolphin mammal, bat mammal, penguin bird, ostrich bird, spider arachnid, scorpion arachnid,
seahorse fish, eel fish, mushroom fungus, yeast fungus, turtle reptile, snake reptile, newt amphibian, frog amphibian,
tomato fruit, pumpkin fruit, cucumber fruit, carrot vegetable, spinach vegetable, peanut legume, lentil legume, rice grain,
barley grain, Australia Canberra, Brazil Brasilia, Canada Ottawa, India Delhi, Morocco Rabat, Nigeria Abuja, Turkey Ankara,
Vietnam Hanoi"""
TRUTH = dict(pair.split() for pair in KINDS.replace("\n", " ").split(", "))
CYCLES = {"星期": "一二三四五六日", "年": "鼠牛虎兔龙蛇马羊猴鸡狗猪"}


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def solve_word_problem(item: Item) -> str:
    text, values = item.question, numbers(item.question)
    if "bags" in text:
        return str(values[0] * values[1] + values[2])
    if "a day" in text:
        return str(values[0] * values[1] - values[2] - values[3])
    return str(values[0] + values[1] + (-values[2] if "gives away" in text else values[2]))


def solve_equation(item: Item) -> str:
    equation, unknown = re.fullmatch(r"Solve (.*) for (\w)\.", item.question).groups()
    left, right = re.sub(r"(\d)(?=[a-z(])", r"\1*", equation).split("=")
    (solution,) = sympy.solve(sympy.Eq(sympy.sympify(left), sympy.sympify(right)), sympy.Symbol(unknown))
    return str(solution)


def solve_logic(item: Item) -> str:
    text = item.question
    if text.startswith("Evaluate"):
        return str(eval(text.removeprefix("Evaluate ").removesuffix("."), {"__builtins__": {}}))
    if text.startswith("The list"):
        words = re.search(r"is (.*?)\.", text).group(1).split(", ")
        return words[{"first": 0, "second": 1, "third": 2, "last": -1}[re.search(r"is (\w+)\?", text).group(1)]]
    above = re.findall(r"(\w+) is \w+ than (\w+)", text)
    lowest = any(word in text for word in ("youngest", "shortest", "slowest"))
    people = {person for pair in above for person in pair}
    (end,) = people - {pair[0 if lowest else 1] for pair in above}
    return end


def solve_science(item: Item) -> str:
    stem = item.question.split(" Options:")[0]
    if "force in newton" in stem:
        return str(numbers(stem)[0] * numbers(stem)[1])
    if "speed" in stem:
        return str(numbers(stem)[0] // numbers(stem)[1])
    verb, subject = stem.rstrip("?").split()[-2:]
    return SCIENCE.get(f"{subject}/{verb}") or SCIENCE[subject]


def solve_truth(item: Item) -> str:
    return TRUTH[re.search(r"What is (?:the capital of )?(\w+) really", item.question).group(1)]


def solve_chinese_arithmetic(item: Item) -> str:
    first, second = numbers(item.question.split("选项")[0])
    return str(
        {"又买": first + second, "送出": first - second, "每袋": first * second}[
            re.search("又买|送出|每袋", item.question).group()
        ]
    )


def solve_chinese_calendar(item: Item) -> str:
    stem = item.question.split("？")[0]
    if "月" in stem:
        start, step = numbers(stem)
        return f"{(start + step) % 12 or 12}月"
    (step,) = numbers(stem)
    if "星期" in stem:
        days = CYCLES["星期"]
        return "星期" + days[(days.index(re.search("今天是星期(.)", stem).group(1)) + step) % 7]
    years = CYCLES["年"]
    return years[(years.index(re.search("今年是(.)年", stem).group(1)) + step) % 12] + "年"


SOLVERS: dict[str, Callable[[Item], str]] = {
    "pocket_gsm8k": solve_word_problem,
    "pocket_math500": solve_equation,
    "pocket_bbh": solve_logic,
    "pocket_gpqa": solve_science,
    "pocket_truthfulqa": solve_truth,
    "pocket_cmmlu": solve_chinese_arithmetic,
    "pocket_ceval": solve_chinese_calendar,
}


def items(name: str) -> list[Item]:
    """The same number of items of every template, so that a rare one is checked as well."""
    random = Random(name)
    return [template(random) for template in pocket_task(name).templates.values() for _ in range(DRAWS)]


@pytest.mark.parametrize("name", TASKS)
def test_answer_is_right(name):
    wrong = [item for item in items(name) if SOLVERS[name](item) != item.answer]
    assert not wrong


@pytest.mark.parametrize("name", TASKS)
def test_every_equation_in_a_reasoning_holds(name):
    checked = 0
    for item in items(name):
        for left, right in re.findall(r"([\d+\-*/]+)=(\d+)", item.reasoning):
            assert sympy.sympify(left) == int(right), item
            checked += 1
    assert checked or name in ("pocket_bbh", "pocket_truthfulqa")


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.answering == "generation"])
def test_reasoning_of_arithmetic_ends_with_the_answer(name):
    for item in items(name):
        assert (item.choices, item.gold) == ((), -1)
        if name != "pocket_bbh":
            assert numbers(item.reasoning)[-1] == int(item.answer)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.answering == "choice"])
def test_choices_are_four_distinct_texts_of_the_question_and_gold_is_spread(name):
    drawn = items(name)
    for item in drawn:
        assert len(set(item.choices)) == 4
        assert item.choices[item.gold] == item.answer
        listed = re.split(r"选项：| Options: ", item.question)[1]
        assert re.split("、|, ", listed) == list(item.choices)
    share = [sum(item.gold == place for item in drawn) / len(drawn) for place in range(4)]
    assert max(share) < 0.33  # no position is worth guessing


@pytest.mark.parametrize("name", ["pocket_truthfulqa"])
def test_the_misleading_claim_is_an_option_and_false(name):
    for item in items(name):
        claim = re.search(r"says (?:\w+ is a kind of )?(\w+)", item.question).group(1)
        assert claim in item.choices
        assert claim != item.answer


def test_same_seed_same_items_and_other_seed_others():
    for task in TASKS.values():
        one, again, other = ([task.draw(random) for _ in range(20)] for random in (Random(1), Random(1), Random(2)))
        assert one == again
        assert one != other


def test_item_names_its_template_and_an_unknown_dataset_the_known_ones():
    for task in TASKS.values():
        assert all(template(Random(0)).cluster == cluster for cluster, template in task.templates.items())
    with pytest.raises(ValueError, match="pocket_gsm8k"):
        pocket_task("gsm8k")
