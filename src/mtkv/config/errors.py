"""What is wrong with a config, in one line per problem: path, value, what is allowed, and what was perhaps meant."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One problem at one place of the config; `loc` is its path: keys as text, list positions as numbers (`("arms", "a", "seeds", 0)`)."""

    loc: Loc
    message: str

    def __str__(self) -> str:
        return f"{path_text(self.loc)}: {self.message}" if self.loc else self.message


class ConfigError(ValueError):
    """A config that cannot be used; `problems` holds all that was found, `str()` one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def path_text(loc: Loc) -> str:
    """`("arms", "a", "seeds", 0)` as `arms.a.seeds[0]`; keys that are no plain words are quoted."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            plain = part.isprintable() and part and not set(part) & set(" .:[]'\"") and len(part) <= 80
            text += ("." if text else "") + (part if plain else show(part))
    return text


def show(value: Any) -> str:
    """A value as text for a message: null, true and false as in YAML, anything else as Python's repr, shortened."""
    words = {None: "null", True: "true", False: "false"}
    try:
        text = words[value] if value is None or isinstance(value, bool) else repr(value)
    except ValueError:  # Python refuses to print numbers of thousands of digits
        text = f"a {type(value).__name__} with a number of thousands of digits"
    return text if len(text) <= 80 else text[:79] + "…"


def hint(value: Any, allowed: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest of `allowed`, or nothing."""
    if not isinstance(value, str):
        return ""
    by_lower = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(value.lower()[:80], by_lower, n=1, cutoff=0.5)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


def not_one_of(value: Any, allowed: Iterable[str]) -> str:
    """Message for a value that is not in the fixed set `allowed`, with a hint."""
    names = list(allowed)
    return f"{show(value)} is not one of {', '.join(names)}{hint(value, names)}"


def unknown(value: Any, what: str, allowed: Iterable[str]) -> str:
    """Message for a name that refers to nothing: `what` is "an arm", "a teacher id" …"""
    names = list(allowed)
    return f"{show(value)} is not {what}; allowed: {', '.join(names) or 'none, there are none'}{hint(value, names)}"
