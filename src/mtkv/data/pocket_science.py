"""pocket_gpqa: multiple-choice questions about units, symbols, organs and simple formulas."""

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
