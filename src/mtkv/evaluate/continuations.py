"""Where a text's continuation begins, in tokens: the place from which its log-likelihood is summed.

As in lm-eval, blanks at the context's end belong to the continuation, and the whole text is encoded at once. lm-eval cuts it after as
many tokens as the context has alone; where a tokenizer merges the context's last character with a continuation ("：" and "北" into
"：北"), that would drop part of the continuation. Here all continuations of one context begin at the first token in which any differs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """A text as given, and the token ids before and after the cut."""

    given: tuple[str, str]
    context: tuple[int, ...]
    continuation: tuple[int, ...]


def cut_texts(texts: Sequence[tuple[str, str]], encode: Callable[[list[str]], list[list[int]]]) -> list[Cut]:
    """(context, continuation) in tokens, in the order given."""
    moved = [_blanks_moved(*text) for text in texts]
    wholes = encode([context + continuation for context, continuation in moved])
    contexts = list(dict.fromkeys(context for context, _ in moved))
    alone = dict(zip(contexts, encode(contexts), strict=True))
    start = {context: len(ids) for context, ids in alone.items()}
    for (context, _), whole in zip(moved, wholes, strict=True):
        start[context] = min(start[context], _common_length(alone[context], whole))
    cuts = [start[context] for context, _ in moved]
    return [
        Cut(text, tuple(whole[:cut]), tuple(whole[cut:])) for text, whole, cut in zip(texts, wholes, cuts, strict=True)
    ]


def _blanks_moved(context: str, continuation: str) -> tuple[str, str]:
    """Blanks and line breaks at the end of the context go to the continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _common_length(first: list[int], second: list[int]) -> int:
    """Number of leading tokens two texts share."""
    differing = (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differing, min(len(first), len(second)))
