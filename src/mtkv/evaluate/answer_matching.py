"""A second look at answers that were generated: do the answer taken from the output and the verdict follow?

By the rules of the very task of lm-eval that was asked, as its file states them (its filters, what its metric ignores). How they are
applied is written apart from lm-eval, so that a mistake in either shows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import digits, punctuation
from typing import Any


@dataclass(frozen=True)
class Rules:
    """How one task of lm-eval takes and compares generated answers.

    `taken`: its regex filters in turn, as mappings with lm-eval's `regex_pattern`, `group_select` and `fallback`; none: the answer is
    the whole output. `ignored`: options of lm-eval's metric exact_match. None in either: a function of the task's own, which lm-eval
    alone can judge.
    """

    taken: Sequence[Mapping[str, Any]] | None = None
    ignored: Mapping[str, Any] | None = field(default_factory=dict)

    def takes(self, filtered: str, output: str) -> bool:
        """Whether the answer `filtered` is what the filters find in `output`."""
        return self.taken is None or filtered == take(output, self.taken)

    def agrees(self, correct: float, filtered: str, gold: str) -> bool:
        """Whether the verdict `correct` follows from the answer taken and the benchmark's own."""
        if self.ignored is None:
            return correct in (0.0, 1.0)
        return correct == float(compared(filtered, **self.ignored) == compared(gold, **self.ignored))


def take(output: str, filters: Sequence[Mapping[str, Any]]) -> str:
    """What the regex filters leave of an output: the match chosen, of its groups the first that is not empty."""
    for options in filters:
        fallback, found = options.get("fallback", "[invalid]"), re.findall(options["regex_pattern"], output)
        chosen = found[options.get("group_select", 0)] if found else None
        if isinstance(chosen, tuple):
            chosen = next(filter(None, chosen), fallback)
        output = fallback if chosen is None else chosen.strip()
    return output


def compared(
    text: str,
    regexes_to_ignore: Sequence[str] | None = None,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> str:
    """What exact_match compares of a text; in numpy's arrays, which lm-eval uses, texts lose NULs at the end and cannot grow."""
    text = text.rstrip("\0")
    for pattern in regexes_to_ignore or ():
        text = re.sub(pattern, "", text).rstrip("\0")
    if ignore_case:
        text = text.lower()[: len(text)]
    removed = punctuation * ignore_punctuation + digits * ignore_numbers
    return "".join(character for character in text if character not in removed).rstrip("\0")
