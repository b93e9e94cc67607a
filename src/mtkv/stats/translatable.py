"""English sentences about data that keep template and facts, so that the report can say them in another language.

`tell("{arm} has no result ({gap})", arm="sft", gap=…)` is a `str`; `packed` gives its template and facts as JSON for a table.
A fact that is a sentence itself keeps its own template. This package knows no language but English.
"""

import json
from collections.abc import Sequence
from typing import Any


class Sentence(str):
    """English text with its template and facts. Any operation on the string gives a plain `str` again."""

    template: str
    facts: dict[str, str]


def tell(template: str, **facts: object) -> Sentence:
    """`template` with {facts} filled in."""
    known = {name: fact if isinstance(fact, str) else str(fact) for name, fact in facts.items()}
    made = Sentence(template.format(**known))
    made.template, made.facts = template, known
    return made


def listed(sentences: Sequence[str]) -> str:
    """Sentences with semicolons between them."""
    first, *rest = sentences
    return tell("{first}; {rest}", first=first, rest=listed(rest)) if rest else first


def both(sentences: Sequence[str]) -> str:
    """Sentences with "and" between them."""
    first, *rest = sentences
    return tell("{first} and {rest}", first=first, rest=both(rest)) if rest else first


def no_result(arm: str, gap: str) -> Sentence:
    """`<arm> has no result (<gap>)`: why an arm lacks a number."""
    return tell("{arm} has no result ({gap})", arm=arm, gap=gap)


def packed(text: str | None) -> str | None:
    """JSON of a sentence: {"template": …, "facts": {name: text, or again such an object}}; of a plain text, the text."""
    return None if text is None else json.dumps(_parts(text), ensure_ascii=False)


def _parts(text: str) -> Any:
    if not isinstance(text, Sentence):
        return text
    return {"template": text.template, "facts": {name: _parts(fact) for name, fact in text.facts.items()}}
