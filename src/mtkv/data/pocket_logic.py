"""pocket_bbh: orderings, boolean expressions and positions in a list, each answered with a word."""

from random import Random

from mtkv.data.items import Task, Written, generated

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
