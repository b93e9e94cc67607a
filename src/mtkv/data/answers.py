"""Bring the answers of all data sets into one plain form per kind.

Numbers without separators, currency and needless decimals; booleans as yes and no; LaTeX as the contents of its last \\boxed.
"""

import re
import reprlib
from fractions import Fraction
from typing import Any

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*)?(?:\.\d+)?")
_CALCULATION = re.compile(r"<<[^<>]*>>")


class AnswerError(ValueError):
    """A record whose answer is not of the kind that its data set promises."""


def number(value: Any) -> str:
    """A number as plain text: "1,000" and "$1,000.00" are 1000, 51.0 is 51, "45%" stays in percent, "1/2" stays a fraction.

    Raises AnswerError for anything else.
    """
    if isinstance(value, bool) or value is None:
        raise AnswerError(f"{value!r} is not a number")
    text = str(value).strip().removesuffix(".").replace("−", "-").replace("$", "").replace("，", ",").strip()
    percent = text.endswith(("%", "％"))
    text = text.rstrip("%％ ")
    while text.startswith("(") and text.endswith(")") and _balanced(text[1:-1]):
        text = text[1:-1]
    top, slash, bottom = text.partition("/")
    if slash:
        top, bottom = (part.strip("() ") for part in (top, bottom))
        return f"{_plain(top)}/{_plain(bottom)}" + "%" * percent
    return _plain(text) + "%" * percent


def yes_no(value: Any) -> str:
    """yes or no, from a boolean or its name. Raises AnswerError otherwise."""
    known = {"true": "yes", "false": "no", "yes": "yes", "no": "no"}
    if str(value).strip().casefold() not in known:
        raise AnswerError(f"{value!r} is neither true nor false")
    return known[str(value).strip().casefold()]


def boxed(solution: str) -> str:
    r"""What stands in the last \boxed{…} (or \fbox{…}, or `\boxed 5`) of a LaTeX solution. Raises AnswerError without one."""
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        raise AnswerError("the solution has no \\boxed answer")
    rest = solution[start:].removeprefix("\\boxed").removeprefix("\\fbox")
    if not rest.startswith("{"):
        return rest.split("$")[0].strip()
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place].strip()
    raise AnswerError("the \\boxed answer has no closing brace")


def without_calculations(text: str) -> str:
    """GSM8K's reasoning without its calculator marks <<48/2=24>>."""
    return _CALCULATION.sub("", text)


def as_text(value: Any) -> str:
    """`value` unchanged. Raises AnswerError unless it is a string (not null, a number, NaN, a list) that UTF-8 can encode."""
    if not isinstance(value, str):
        raise AnswerError(f"{reprlib.repr(value)} is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise AnswerError(f"{reprlib.repr(value)} holds half a character (a lone surrogate)") from None
    return value


def text(value: Any) -> str:
    """A string without white space around it. Raises AnswerError when nothing is left, or for anything but a string."""
    found = " ".join(as_text(value).split())
    if not found:
        raise AnswerError("the text is empty")
    return found


def as_fraction(value: str) -> Fraction | None:
    """The value of a plain number, or None for what is not one."""
    try:
        scale = 100 if value.endswith("%") else 1
        return Fraction(value.rstrip("%")) / scale
    except (ValueError, ZeroDivisionError):
        return None


def _plain(value: str) -> str:
    value = value.strip()
    if not value or not _NUMBER.fullmatch(value) or not any(character.isdigit() for character in value):
        raise AnswerError(f"{value!r} is not a number")
    value = value.replace(",", "").removeprefix("+")
    if "." in value:
        value = value.rstrip("0").rstrip(".")
    sign = "-" if value.startswith("-") else ""
    whole, point, part = value.removeprefix("-").partition(".")
    whole = whole.lstrip("0") or "0"
    return (sign if whole != "0" or part else "") + whole + point + part


def _balanced(value: str) -> bool:
    """Whether every bracket that `value` closes was opened within `value`."""
    depth = 0
    for character in value:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0
