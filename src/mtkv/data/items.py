"""The one shape every question has, whatever task it comes from, and what a task is.

A task is a function from a random generator to an `Item`; everything after it (styles, splits, files) sees items only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from random import Random
from typing import Literal

from mtkv.data.answers import AnswerError, as_text, text

Language = Literal["en", "zh"]
Answering = Literal["generation", "choice"]

OPTION_COUNT = 4


@dataclass(frozen=True)
class Item:
    """One question. `choices` is empty and `gold` is -1 when the answer is to be generated.

    `cluster` names the template: items of one cluster are alike, so statistics may resample clusters instead of items. Raises
    AnswerError, whoever makes the item, for a field that is no text (null, a number, NaN, half a character), for a blank question or
    answer and for a `gold` that is none of the choices.
    """

    question: str
    reasoning: str
    answer: str
    cluster: str
    choices: tuple[str, ...] = ()
    gold: int = -1

    def __post_init__(self) -> None:
        for written in (text(self.question), self.reasoning, text(self.answer), self.cluster, *self.choices):
            as_text(written)
        if self.gold not in (range(len(self.choices)) if self.choices else (-1,)):
            raise AnswerError(f"gold {self.gold!r} is the number of none of the {len(self.choices)} choices")


Template = Callable[[Random], Item]
Written = tuple[str, str, int | str]


@dataclass(frozen=True)
class Task:
    """One dataset: its templates (keyed by cluster id; drawn uniformly), language and way of being answered."""

    name: str
    language: Language
    answering: Answering
    templates: Mapping[str, Template]

    def draw(self, random: Random) -> Item:
        """One item of a uniformly drawn template. The same generator state gives the same item."""
        return self.templates[random.choice(sorted(self.templates))](random)


def generated(write: Callable[[Random], Written]) -> Template:
    """The template of a function that writes a question, its reasoning and the answer to generate; the cluster is its name."""

    @wraps(write)
    def draw(random: Random) -> Item:
        question, reasoning, answer = write(random)
        return Item(question, reasoning, str(answer), write.__name__)

    return draw


def choice_item(
    random: Random,
    stem: str,
    reasoning: str,
    answer: str,
    wrong: Sequence[str],
    cluster: str,
    language: Language = "en",
) -> Item:
    """A multiple-choice item: the four options in random order, written behind `stem` and kept in `choices`.

    Raises ValueError unless `wrong` holds three texts that differ from each other and from `answer`.
    """
    options = [answer, *wrong]
    if len(set(options)) != OPTION_COUNT:
        raise ValueError(f"{cluster}: expected {OPTION_COUNT} different options, got {options}")
    random.shuffle(options)
    listed = f"选项：{'、'.join(options)}" if language == "zh" else f" Options: {', '.join(options)}"
    return Item(f"{stem}{listed}", reasoning, answer, cluster, tuple(options), options.index(answer))


def near_numbers(random: Random, value: int, count: int = OPTION_COUNT - 1) -> list[str]:
    """`count` distinct non-negative whole numbers near `value` and different from it, as texts."""
    near = [value + step for step in (-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6) if value + step >= 0]
    return [str(number) for number in random.sample(near, count)]
