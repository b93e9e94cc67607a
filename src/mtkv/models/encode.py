"""Turn rows of text into one model's own token ids, with the byte at which each token ends.

Every model reads the same characters through its own tokenizer; byte ends are what two tokenizations have in common
(method.md §2). Offsets come from the fast tokenizer, never from decoding token by token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

NOT_A_BOUNDARY = -1


@dataclass(frozen=True)
class EncodedRow:
    """One row as one model reads it. All arrays have shape [time].

    `byte_end`: UTF-8 byte of the text at which the token ends, or −1 where nothing may be compared: special tokens, the
    first token (attention sink) and all but the last of the tokens that share one multi-byte character.
    `byte_start`: end of the boundary before it, so that the spans of a row share no byte and leave no gap between them; −1
    wherever `byte_end` is.
    `is_target`: tokens of the target part and the closing eos, on which the cross-entropy is taken.
    """

    input_ids: np.ndarray
    byte_start: np.ndarray
    byte_end: np.ndarray
    is_target: np.ndarray


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], targets: Sequence[str], max_length: int | None
) -> list[EncodedRow]:
    """Encode `prompt + target + eos` of each row.

    Raises ValueError for a tokenizer without offsets or without eos, and for a row longer than `max_length` tokens: nothing
    is truncated silently.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer {tokenizer.name_or_path}: needs a fast tokenizer, only those report offsets")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {tokenizer.name_or_path}: has no eos token, so an answer could never end")
    texts = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
    rows = [
        _encode_row(ids, offsets, text, len(prompt), tokenizer.eos_token_id)
        for ids, offsets, text, prompt in zip(
            encoded["input_ids"], encoded["offset_mapping"], texts, prompts, strict=True
        )
    ]
    longest = max((len(row.input_ids) for row in rows), default=0)
    if max_length is not None and longest > max_length:
        raise ValueError(
            f"a row has {longest} tokens for {tokenizer.name_or_path}, more than the limit of {max_length}: "
            "raise training.max_length or drop the row"
        )
    return rows


def byte_ends(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """End of each token in UTF-8 bytes of `text`, [time]; −1 where the token is no boundary (see `EncodedRow`)."""
    byte_at = np.cumsum([0] + [len(character.encode()) for character in text])
    ends = np.array([byte_at[end] if end > start else NOT_A_BOUNDARY for start, end in offsets], dtype=np.int32)
    # Byte-level tokenizers give every piece of one character the span of the whole; only the last piece has read it all.
    unfinished = np.append(ends[:-1] == ends[1:], False) if len(ends) else np.zeros(0, dtype=bool)
    ends[unfinished] = NOT_A_BOUNDARY
    return ends


def byte_starts(ends: np.ndarray) -> np.ndarray:
    """Where the span of each token begins, [time]: at the last boundary before it; −1 where `ends` is."""
    reached = np.maximum.accumulate(np.append(0, np.maximum(ends, 0)))[:-1]
    return np.where(ends == NOT_A_BOUNDARY, NOT_A_BOUNDARY, reached).astype(np.int32)


def _encode_row(
    ids: list[int], offsets: list[tuple[int, int]], text: str, prompt_length: int, eos_token_id: int
) -> EncodedRow:
    ends = byte_ends(text, offsets)
    starts = byte_starts(ends)
    starts[:1] = ends[:1] = NOT_A_BOUNDARY
    is_target = [end > prompt_length for _, end in offsets]
    return EncodedRow(
        input_ids=np.array([*ids, eos_token_id], dtype=np.int64),
        byte_start=np.append(starts, NOT_A_BOUNDARY).astype(np.int32),
        byte_end=np.append(ends, NOT_A_BOUNDARY).astype(np.int32),
        is_target=np.array([*is_target, True]),
    )


def pad_batch(rows: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """Right-pad 1-D arrays to [batch, longest] with `fill`."""
    padded = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=rows[0].dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded
