"""What `load_tokenizer` notes about a model on its tokenizer, as the attribute `reading`, and the checks of rows against it.

A tokenizer without that attribute (one that was not loaded here) counts as reading plain text of any length.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from mtkv.config.models import DATE


@dataclass(frozen=True)
class Reading:
    """How one model reads rows. `prompt`: plain or chat (see `ModelConfig.prompt`). `context`: longest row in tokens; `embeddings`: rows
    of its input embedding; None where unknown. `date`: the day that a chat template is given as today's."""

    prompt: str = "plain"
    context: int | None = None
    embeddings: int | None = None
    date: str = DATE


def reading_of(tokenizer: PreTrainedTokenizerBase) -> Reading:
    """The tokenizer's `reading`, or the defaults."""
    reading: Reading = getattr(tokenizer, "reading", Reading())
    return reading


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the tokenizer itself puts before a plain text: bos where the model was trained with one (Llama, Gemma, OPT), or none."""
    text, own = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    bos = tokenizer.bos_token_id
    return [int(bos)] if own[:1] == [bos] and bos not in text else []


def check_lengths(tokenizer: PreTrainedTokenizerBase, rows: Sequence[np.ndarray], limit: int | None) -> None:
    """Raises ValueError for a row longer than `limit` or than the model's context: nothing is truncated silently."""
    context = reading_of(tokenizer).context
    limits = [size for size in (limit, context) if size is not None]
    longest = max(range(len(rows)), key=lambda index: len(rows[index]), default=None)
    if longest is None or not limits or len(rows[longest]) <= min(limits):
        return
    found = f"row number {longest} has {len(rows[longest])} tokens for {tokenizer.name_or_path}"
    if context is not None and context == min(limits):
        raise ValueError(f"{found}, more than its context of {context}: shorten or drop the row")
    raise ValueError(f"{found}, more than the limit of {limit}: raise training.max_length or drop the row")


def check_ids(tokenizer: PreTrainedTokenizerBase, rows: Sequence[np.ndarray]) -> None:
    """Raises ValueError for a token that the model has no embedding for, which would otherwise fail deep inside the forward."""
    embeddings = reading_of(tokenizer).embeddings
    for index, row in enumerate(rows) if embeddings is not None else ():
        if len(row) and row.max() >= embeddings:
            token = tokenizer.convert_ids_to_tokens(int(row.max()))
            raise ValueError(
                f"row number {index} has the token {token!r} ({row.max()}), but {tokenizer.name_or_path} has only "
                f"{embeddings} embeddings: tokenizer and model do not belong together"
            )


def check_text(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int], number: int) -> None:
    """Raises ValueError unless `ids` decode to the row's text, apart from white space and what normalisers change (case, accents).

    Not checked: rows with unknown tokens, which cannot be decoded, and tokenizers without a decoder.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if getattr(backend, "decoder", None) is None or tokenizer.unk_token_id in ids:
        return
    read = str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if read != text and _plain(read) != _plain(text):
        raise ValueError(
            f"row number {number}: {tokenizer.name_or_path} reads {_around(read, text)!r} where the row says "
            f"{_around(text, read)!r}; tokenizer files do not belong together"
        )


def _plain(text: str) -> str:
    """A text without white space, combining marks, control characters and case, which normalisers may change."""
    kept = (
        c for c in unicodedata.normalize("NFKD", text) if not c.isspace() and unicodedata.category(c)[0] not in "MC"
    )
    return unicodedata.normalize("NFKD", "".join(kept).casefold())


def _around(text: str, other: str) -> str:
    """Some characters of `text` from where it begins to differ from `other`."""
    start = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return text[max(0, start - 10) : start + 30]
