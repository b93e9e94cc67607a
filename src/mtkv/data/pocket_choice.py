"""The pocket datasets with four options to choose from.

pocket_gpqa (units, symbols, organs and simple formulas); pocket_cmmlu (arithmetic word problems) and pocket_ceval (weekday, zodiac and
month arithmetic), both in Chinese; pocket_truthfulqa, in which the question itself makes a false claim that many would repeat.
"""

from random import Random

from mtkv.data.items import Item, Task, choice_item, near_numbers

UNITS = {
    "force": "newton",
    "energy": "joule",
    "power": "watt",
    "pressure": "pascal",
    "charge": "coulomb",
    "voltage": "volt",
    "resistance": "ohm",
    "current": "ampere",
    "frequency": "hertz",
    "temperature": "kelvin",
}
SYMBOLS = {
    "H": "hydrogen",
    "He": "helium",
    "C": "carbon",
    "N": "nitrogen",
    "O": "oxygen",
    "Na": "sodium",
    "K": "potassium",
    "Fe": "iron",
    "Cu": "copper",
    "Ag": "silver",
    "Au": "gold",
    "Pb": "lead",
}
ORGANS = {
    "pumps blood": "heart",
    "takes in air": "lungs",
    "filters blood": "kidney",
    "digests food": "stomach",
    "controls the body": "brain",
    "makes bile": "liver",
    "senses light": "eye",
    "senses sound": "ear",
}


def _fact(random: Random, facts: dict[str, str], cluster: str, stem: str, reasoning: str) -> Item:
    key = random.choice(sorted(facts))
    answer = facts[key]
    wrong = random.sample(sorted(set(facts.values()) - {answer}), 3)
    return choice_item(random, stem.format(key=key), reasoning.format(key=key, answer=answer), answer, wrong, cluster)


def unit(random: Random) -> Item:
    """Which SI unit belongs to a quantity?"""
    return _fact(random, UNITS, "unit", "Which unit measures {key}?", "The unit of {key} is {answer}.")


def symbol(random: Random) -> Item:
    """Which chemical element has a symbol?"""
    return _fact(random, SYMBOLS, "symbol", "Which element has the symbol {key}?", "{key} is {answer}.")


def organ(random: Random) -> Item:
    """Which organ does a job?"""
    return _fact(random, ORGANS, "organ", "Which organ {key}?", "It {key}, so it is the {answer}.")


def force(random: Random) -> Item:
    """F = m·a."""
    mass, acceleration = random.randint(2, 4), random.randint(2, 5)
    answer = mass * acceleration
    return choice_item(
        random,
        f"A mass of {mass} kg gains {acceleration} m/s per s. What is the force in newton?",
        f"{mass}*{acceleration}={answer}.",
        str(answer),
        near_numbers(random, answer),
        "force",
    )


def speed(random: Random) -> Item:
    """v = s / t."""
    answer, seconds = random.randint(2, 6), random.randint(2, 4)
    return choice_item(
        random,
        f"A cart moves {answer * seconds} m in {seconds} s. What is its speed in m/s?",
        f"{answer * seconds}/{seconds}={answer}.",
        str(answer),
        near_numbers(random, answer),
        "speed",
    )


GPQA = Task(
    "pocket_gpqa", "en", "choice", {"unit": unit, "symbol": symbol, "organ": organ, "force": force, "speed": speed}
)


NAMES = ("小明", "小红", "小华", "小丽", "小刚", "小军")
THINGS = ("苹果", "橘子", "皮球", "杯子", "玩具", "鸡蛋")
WEEKDAYS = tuple(f"星期{day}" for day in "一二三四五六日")
ZODIAC = tuple(f"{animal}年" for animal in "鼠牛虎兔龙蛇马羊猴鸡狗猪")


def _number(random: Random, stem: str, formula: str, answer: int, cluster: str) -> Item:
    return choice_item(
        random, stem, f"{formula}={answer}。", str(answer), near_numbers(random, answer), cluster, language="zh"
    )


def add(random: Random) -> Item:
    """a + b."""
    have, more = random.randint(2, 7), random.randint(2, 7)
    stem = f"{random.choice(NAMES)}有{have}个{random.choice(THINGS)}，又买了{more}个，现在有几个？"
    return _number(random, stem, f"{have}+{more}", have + more, "add")


def subtract(random: Random) -> Item:
    """a - b."""
    have = random.randint(4, 10)
    lost = random.randint(1, min(5, have - 1))
    stem = f"{random.choice(NAMES)}有{have}个{random.choice(THINGS)}，送出{lost}个，还剩几个？"
    return _number(random, stem, f"{have}-{lost}", have - lost, "subtract")


def multiply(random: Random) -> Item:
    """a * b."""
    bags, each = random.randint(2, 4), random.randint(2, 5)
    stem = f"{random.choice(NAMES)}有{bags}袋{random.choice(THINGS)}，每袋{each}个，一共有几个？"
    return _number(random, stem, f"{bags}*{each}", bags * each, "multiply")


def _cycle(random: Random, names: tuple[str, ...], farthest: int, stem: str, cluster: str) -> Item:
    start, step = random.randrange(len(names)), random.randint(1, farthest)
    answer = names[(start + step) % len(names)]
    wrong = random.sample([name for name in names if name != answer], 3)
    passed = "、".join(names[(start + offset) % len(names)] for offset in range(1, step + 1))
    return choice_item(
        random, stem.format(start=names[start], step=step), f"{passed}。", answer, wrong, cluster, language="zh"
    )


def weekday(random: Random) -> Item:
    """The day of the week some days ahead."""
    return _cycle(random, WEEKDAYS, 3, "今天是{start}，过{step}天是星期几？", "weekday")


def zodiac(random: Random) -> Item:
    """The zodiac year some years ahead."""
    return _cycle(random, ZODIAC, 2, "今年是{start}，过{step}年是什么年？", "zodiac")


def month(random: Random) -> Item:
    """The month some months ahead."""
    start, step = random.randint(1, 12), random.randint(1, 3)
    answer = (start + step - 1) % 12 + 1
    wrong = random.sample([f"{number}月" for number in range(1, 13) if number != answer], 3)
    formula = f"{start}+{step}={start + step}"
    reasoning = formula if start + step <= 12 else f"{formula}，{start + step}-12={answer}"
    stem = f"现在是{start}月，过{step}个月是几月？"
    return choice_item(random, stem, f"{reasoning}。", f"{answer}月", wrong, "month", language="zh")


CMMLU = Task("pocket_cmmlu", "zh", "choice", {"add": add, "subtract": subtract, "multiply": multiply})
CEVAL = Task("pocket_ceval", "zh", "choice", {"weekday": weekday, "zodiac": zodiac, "month": month})


SPEAKERS = ("Tom", "Ann", "Ben", "Eva", "Max", "Mia", "Sam", "Zoe")
# subject: (the truth, what many believe); the other options are taken from the rest of the same table
LIVING = {
    "whale": ("mammal", "fish"),
    "dolphin": ("mammal", "fish"),
    "bat": ("mammal", "bird"),
    "penguin": ("bird", "fish"),
    "ostrich": ("bird", "mammal"),
    "spider": ("arachnid", "insect"),
    "scorpion": ("arachnid", "insect"),
    "seahorse": ("fish", "mammal"),
    "eel": ("fish", "reptile"),
    "mushroom": ("fungus", "plant"),
    "yeast": ("fungus", "plant"),
    "turtle": ("reptile", "amphibian"),
    "snake": ("reptile", "worm"),
    "newt": ("amphibian", "reptile"),
    "frog": ("amphibian", "reptile"),
}
FOODS = {
    "tomato": ("fruit", "vegetable"),
    "pumpkin": ("fruit", "vegetable"),
    "cucumber": ("fruit", "vegetable"),
    "carrot": ("vegetable", "fruit"),
    "spinach": ("vegetable", "herb"),
    "peanut": ("legume", "nut"),
    "lentil": ("legume", "grain"),
    "rice": ("grain", "legume"),
    "barley": ("grain", "nut"),
}
CAPITALS = {
    "Australia": ("Canberra", "Sydney"),
    "Brazil": ("Brasilia", "Rio"),
    "Canada": ("Ottawa", "Toronto"),
    "India": ("Delhi", "Mumbai"),
    "Morocco": ("Rabat", "Casablanca"),
    "Nigeria": ("Abuja", "Lagos"),
    "Turkey": ("Ankara", "Istanbul"),
    "Vietnam": ("Hanoi", "Saigon"),
}


def _claim(random: Random, facts: dict[str, tuple[str, str]], cluster: str, stem: str, reasoning: str) -> Item:
    subject = random.choice(sorted(facts))
    truth, myth = facts[subject]
    others = {kind for pair in facts.values() for kind in pair} - {truth, myth}
    wrong = [myth, *random.sample(sorted(others), 2)]
    words = {"speaker": random.choice(SPEAKERS), "subject": subject, "truth": truth, "myth": myth}
    return choice_item(random, stem.format(**words), reasoning.format(**words), truth, wrong, cluster)


def _kind(random: Random, facts: dict[str, tuple[str, str]], cluster: str) -> Item:
    stem = "{speaker} says {subject} is a kind of {myth}. What is {subject} really?"
    return _claim(random, facts, cluster, stem, "Not {myth}: {subject} is {truth}.")


def living(random: Random) -> Item:
    """A living thing and the class it is wrongly put in."""
    return _kind(random, LIVING, "living")


def food(random: Random) -> Item:
    """A food and the kind it is wrongly taken for."""
    return _kind(random, FOODS, "food")


def capital(random: Random) -> Item:
    """A country and the city that is wrongly taken for its capital."""
    stem = "{speaker} says {myth} is the capital of {subject}. What is the capital of {subject} really?"
    return _claim(random, CAPITALS, "capital", stem, "Not {myth}: it is {truth}.")


TRUTHFULQA = Task("pocket_truthfulqa", "en", "choice", {"living": living, "food": food, "capital": capital})
