"""The page's fixed words in English and Chinese, all from the one catalogue `static/strings.toml`.

`LANGUAGES[language][key]` are the words of the page. Figures write English where they are made: a text without facts is found in the
catalogue as it stands, one with facts is made by `say("Highest: {best}.", best=arm)` and so knows its Chinese too. Sentences of the
statistics come with their template and facts (`mtkv.stats.translatable`), and `retold` finds the Chinese of all their parts.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

FACT = re.compile(r"(?<!%)\{\w+\}")  # {name}, but not plotly's %{x}
CATALOGUE = tomllib.loads((Path(__file__).parent / "static/strings.toml").read_text(encoding="utf-8"))
LANGUAGES: dict[str, dict[str, str]] = {
    language: {key: text[language] for key, text in CATALOGUE["words"].items()} for language in ("en", "zh")
}
PHRASES: dict[str, str] = (
    CATALOGUE["studies"]
    | CATALOGUE["phrases"]
    | {english: LANGUAGES["zh"][key] for key, english in LANGUAGES["en"].items()}
)


class Words(str):
    """English text that carries its Chinese along; adding two texts adds both languages."""

    chinese: str

    def __new__(cls, english: str, in_chinese: str) -> "Words":
        made = super().__new__(cls, english)
        made.chinese = in_chinese
        return made

    def __add__(self, other: str) -> "Words":
        return Words(str(self) + str(other), self.chinese + chinese(other))

    def __radd__(self, other: str) -> "Words":
        return Words(str(other) + str(self), chinese(other) + self.chinese)

    def mapped(self, change: Callable[[str], str]) -> "Words":
        """`change` applied to both languages."""
        return Words(change(str(self)), change(self.chinese))

    def strip(self, chars: str | None = None, /) -> "Words":
        """Both languages without blanks (or `chars`) at their ends."""
        return self.mapped(lambda text: text.strip(chars))


class Quoting(Words):
    """A sentence that may quote what a person or a model wrote, as reasons of missing cells do: tables keep it as it is."""

    verbatim = True


def say(english: str, **facts: object) -> Words:
    """`english` with `facts` filled in, in both languages; a sentence that the catalogue lacks stays English in both."""
    template = PHRASES.get(english, english)
    translated = {name: chinese(fact) if isinstance(fact, str) else fact for name, fact in facts.items()}
    return Words(english.format(**facts), template.format(**translated))


def listed(texts: Iterable[str], separator: str = ", ") -> str:
    """Texts with a separator between them, in both languages if one of them has two."""
    known = list(texts)
    joined = separator.join(known)
    return (
        Words(joined, separator.join(map(chinese, known))) if any(isinstance(text, Words) for text in known) else joined
    )


def retold(text: Any, parts: Any) -> str:
    """A sentence of the statistics in both languages; `parts` is its JSON, which tables of older studies lack."""
    if not isinstance(text, str):
        return ""
    told = _retold(json.loads(parts)) if isinstance(parts, str) else text
    return told if told == text else text


def _retold(parts: Any) -> str:
    if isinstance(parts, str):
        return parts
    return say(parts["template"], **{name: _retold(fact) for name, fact in parts["facts"].items()})


def chinese(text: str) -> str:
    """The Chinese of `text`, or `text` itself where it has none (a name, a number)."""
    return text.chinese if isinstance(text, Words) else PHRASES.get(text, text)


@cache
def page_phrases() -> dict[str, str]:
    """English → Chinese for every text of the catalogue that needs no facts: what the page's switch looks up."""
    return {english: text for english, text in PHRASES.items() if not FACT.search(english)}
