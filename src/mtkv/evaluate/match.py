"""A second look at answers that were generated: does "correct" follow from what was extracted and from the gold answer?

Written apart from lm-eval's metrics, so that a mistake in either shows.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """`agrees(correct, filtered, gold)`: whether the verdict follows. `stands_in(filtered, output)`: whether the output says so."""

    agrees: Callable[[float, str, str], bool]
    stands_in: Callable[[str, str], bool]


def plain_number(text: str) -> str:
    """Without separators, currency and a final full stop."""
    return text.replace(",", "").replace("$", "").removesuffix(".").casefold()


def plain_text(text: str) -> str:
    """As BBH's tasks compare: no commas, quotes, line breaks and backslashes, no final full stop, any case."""
    return re.sub(r"\\.$|[,\n\\\"]", "", text).casefold()


def _equal(plain: Callable[[str], str]) -> Callable[[float, str, str], bool]:
    return lambda correct, filtered, gold: correct == float(plain(filtered) == plain(gold))


def _contains(filtered: str, output: str) -> bool:
    return filtered in output


def _anything(filtered: str, output: str) -> bool:
    """The filter rewrites the output."""
    return True


def _symbolic(correct: float, filtered: str, gold: str) -> bool:
    """Equivalence itself is lm-eval's to judge; a verdict is 0 or 1."""
    return correct in (0.0, 1.0)


MATCHES: dict[str, Match] = {
    "same": Match(_equal(str), _contains),
    "number": Match(_equal(plain_number), _contains),
    "text": Match(_equal(plain_text), _anything),  # BBH's filters write number words as digits and sort words
    "symbolic": Match(_symbolic, _anything),
}
