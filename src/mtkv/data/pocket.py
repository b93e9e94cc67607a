"""The seven pocket datasets: small, synthetic, each shaped like the benchmark in its name, and those whose answer is generated.

pocket_gsm8k (word problems of two or three operations), pocket_math500 (linear equations) and pocket_bbh (orderings, boolean expressions
and positions in a list, each answered with a word); those with options are in `mtkv.data.pocket_choice`. Numbers are small enough for a
model of a million parameters, and every reasoning spells each operation once.
"""

from collections.abc import Mapping
from dataclasses import replace
from random import Random

from mtkv.data.items import Task, Written, generated
from mtkv.data.pocket_choice import CEVAL, CMMLU, GPQA, TRUTHFULQA
from mtkv.registry import registered

PEOPLE = ("Ann", "Ben", "Cal", "Dan", "Eva", "Fay", "Gus", "Hal", "Ida", "Joe", "Kim", "Leo")
WORDS = ("cat", "dog", "sun", "map", "cup", "hat", "box", "key", "pen", "egg", "car", "bee")
RELATIONS = {"older": ("oldest", "youngest"), "taller": ("tallest", "shortest"), "faster": ("fastest", "slowest")}
POSITIONS = ("first", "second", "third", "last")


@generated
def ordering(random: Random) -> Written:
    """Two comparisons of three people, in either order; who stands at one end?"""
    high, middle, low = random.sample(PEOPLE, 3)
    relation = random.choice(sorted(RELATIONS))
    end = random.randrange(2)
    facts = [f"{high} is {relation} than {middle}.", f"{middle} is {relation} than {low}."]
    random.shuffle(facts)
    return (
        f"{' '.join(facts)} Who is the {RELATIONS[relation][end]}?",
        f"{high} > {middle} > {low}.",
        (high, low)[end],
    )


@generated
def boolean(random: Random) -> Written:
    """(p op q) op r, each operand with or without `not`."""
    values = [random.random() < 0.5 for _ in range(3)]
    negated = [random.random() < 0.5 for _ in range(3)]
    inner, outer = random.choice(("and", "or")), random.choice(("and", "or"))
    first, second, third = (f"not {value}" if sign else f"{value}" for value, sign in zip(values, negated, strict=True))
    left, right, last = (value != sign for value, sign in zip(values, negated, strict=True))
    bracket = _combine(left, inner, right)
    answer = _combine(bracket, outer, last)
    return (
        f"Evaluate ({first} {inner} {second}) {outer} {third}.",
        f"({left} {inner} {right}) {outer} {last} = {bracket} {outer} {last}.",
        answer,
    )


@generated
def position(random: Random) -> Written:
    """The n-th word of a list of four."""
    words = random.sample(WORDS, 4)
    place = random.randrange(4)
    return (
        f"The list is {', '.join(words)}. Which word is {POSITIONS[place]}?",
        " ".join(words[: place + 1]) + ".",
        words[place],
    )


def _combine(left: bool, operator: str, right: bool) -> bool:
    return {"and": left and right, "or": left or right}[operator]


BBH = Task("pocket_bbh", "en", "generation", {"ordering": ordering, "boolean": boolean, "position": position})


NAMES = ("Tom", "Ann", "Ben", "Eva", "Max", "Mia", "Sam", "Zoe")
THINGS = ("pens", "cards", "books", "coins", "eggs", "nuts", "toys", "keys")
UNKNOWNS = ("x", "y", "n", "k", "m")


@generated
def buy_and_give(random: Random) -> Written:
    """a + b - c."""
    have, bought = random.randint(2, 7), random.randint(2, 7)
    total = have + bought
    given = random.randint(1, min(6, total - 1))
    name, thing = random.choice(NAMES), random.choice(THINGS)
    return (
        f"{name} has {have} {thing}, buys {bought} more and gives away {given}. How many {thing} are left?",
        f"{have}+{bought}={total}. {total}-{given}={total - given}.",
        total - given,
    )


@generated
def bags_and_more(random: Random) -> Written:
    """a * b + c."""
    bags, each, more = random.randint(2, 4), random.randint(2, 5), random.randint(1, 6)
    name, thing = random.choice(NAMES), random.choice(THINGS)
    return (
        f"{name} has {bags} bags with {each} {thing} each and finds {more} more. How many {thing} are there?",
        f"{bags}*{each}={bags * each}. {bags * each}+{more}={bags * each + more}.",
        bags * each + more,
    )


@generated
def three_days(random: Random) -> Written:
    """a + b + c."""
    first, second, third = (random.randint(2, 6) for _ in range(3))
    name, thing = random.choice(NAMES), random.choice(THINGS)
    total = first + second
    return (
        f"{name} sells {first} {thing} on Monday, {second} on Friday and {third} on Sunday. How many in total?",
        f"{first}+{second}={total}. {total}+{third}={total + third}.",
        total + third,
    )


@generated
def daily_minus_two(random: Random) -> Written:
    """a * b - c - d: the template of three operations."""
    daily, days = random.randint(2, 5), random.randint(3, 4)
    product = daily * days
    lost = random.randint(1, 3)
    sold = random.randint(1, min(4, product - lost - 1))
    name, thing = random.choice(NAMES), random.choice(THINGS)
    rest = product - lost
    return (
        f"{name} gets {daily} {thing} a day for {days} days, loses {lost} and sells {sold}. How many {thing} are left?",
        f"{daily}*{days}={product}. {product}-{lost}={rest}. {rest}-{sold}={rest - sold}.",
        rest - sold,
    )


@generated
def scaled_plus(random: Random) -> Written:
    """a·x + b = c."""
    factor, value, shift = random.randint(2, 4), random.randint(1, 7), random.randint(1, 7)
    name = random.choice(UNKNOWNS)
    product = factor * value
    return (
        f"Solve {factor}{name}+{shift}={product + shift} for {name}.",
        f"{product + shift}-{shift}={product}. {product}/{factor}={value}.",
        value,
    )


@generated
def scaled_minus(random: Random) -> Written:
    """a·x - b = c."""
    factor, value = random.randint(2, 4), random.randint(2, 7)
    product = factor * value
    shift = random.randint(1, min(7, product))
    name = random.choice(UNKNOWNS)
    return (
        f"Solve {factor}{name}-{shift}={product - shift} for {name}.",
        f"{product - shift}+{shift}={product}. {product}/{factor}={value}.",
        value,
    )


@generated
def plus_and_minus(random: Random) -> Written:
    """x + a - b = c."""
    value, plus = random.randint(1, 12), random.randint(1, 7)
    minus = random.randint(1, min(7, value + plus))
    name = random.choice(UNKNOWNS)
    return (
        f"Solve {name}+{plus}-{minus}={value + plus - minus} for {name}.",
        f"{value + plus - minus}+{minus}={value + plus}. {value + plus}-{plus}={value}.",
        value,
    )


@generated
def bracket(random: Random) -> Written:
    """a·(x + b) = c."""
    factor, value, shift = random.randint(2, 4), random.randint(1, 6), random.randint(1, 4)
    name = random.choice(UNKNOWNS)
    total = value + shift
    return (
        f"Solve {factor}({name}+{shift})={factor * total} for {name}.",
        f"{factor * total}/{factor}={total}. {total}-{shift}={value}.",
        value,
    )


GSM8K = Task(
    "pocket_gsm8k",
    "en",
    "generation",
    {
        "buy_and_give": buy_and_give,
        "bags_and_more": bags_and_more,
        "three_days": three_days,
        "daily_minus_two": daily_minus_two,
    },
)
MATH500 = Task(
    "pocket_math500",
    "en",
    "generation",
    {"scaled_plus": scaled_plus, "scaled_minus": scaled_minus, "plus_and_minus": plus_and_minus, "bracket": bracket},
)


TASKS: dict[str, Task] = {
    "pocket_gsm8k": GSM8K,
    "pocket_math500": MATH500,
    "pocket_bbh": BBH,
    "pocket_gpqa": GPQA,
    "pocket_truthfulqa": TRUTHFULQA,
    "pocket_cmmlu": CMMLU,
    "pocket_ceval": CEVAL,
}


def pocket_task(name: str, own: Mapping[str, str] | None = None) -> Task:
    """The task called `name`; `own`: import paths of one's own by name. ValueError for what is none."""
    path = (own or {}).get(name, name)
    task = registered(TASKS, path)
    if not isinstance(task, Task):
        raise ValueError(f"data.extra.{name}: {path} is a {type(task).__name__}; mixture pocket needs a Task")
    return replace(task, name=name)
