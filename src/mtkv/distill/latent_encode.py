"""Rows as a latent student reads them: the question's tokens, placeholders for the latents, the answer's tokens.

The question is cut into tokens alone, as when it is asked, so that no token reaches across the latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from mtkv.distill.chain import ChainRow
from mtkv.models.encode import NOT_A_BOUNDARY, EncodedRow, byte_ends, byte_starts, encode_rows
from mtkv.models.latent import LatentStudent
from mtkv.models.reading import check_lengths


@dataclass(frozen=True)
class LatentRow(EncodedRow):
    """One row of a latent student. `latent_start`: position of its first latent; `value`: of the token that predicts the first of the
    answer's value, whose hidden states CODI compares: the ":" of "Answer:", or the blank behind it where that is a token."""

    latent_start: int
    value: int


def encode_latent(
    tokenizer: PreTrainedTokenizerBase, student: LatentStudent, rows: Sequence[ChainRow], max_length: int | None
) -> list[LatentRow]:
    """Question, placeholders, answer. Raises ValueError for a row longer than `max_length` or the model's context."""
    prompts = [row.prompt for row in rows]
    asked = encode_rows(tokenizer, prompts, [""] * len(rows), max_length)
    whole = encode_rows(tokenizer, prompts, [row.answer for row in rows], max_length)
    questions = [row.input_ids[~row.is_target] for row in asked]
    answers = [
        _answer(tokenizer, row, question, encoded)
        for row, question, encoded in zip(rows, questions, whole, strict=True)
    ]
    encoded = [_laid_out(student, *parts) for parts in zip(rows, asked, answers, strict=True)]
    check_lengths(tokenizer, [row.input_ids for row in encoded], max_length)
    return encoded


def encode_traces(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[ChainRow], max_length: int | None
) -> list[LatentRow]:
    """The same rows with their chain as text; `latent_start` is where it begins."""
    encoded = encode_rows(tokenizer, [row.prompt for row in rows], [row.trace for row in rows], max_length)
    return [
        LatentRow(
            item.input_ids,
            item.byte_start,
            item.byte_end,
            item.is_target,
            int(item.is_target.argmax()),
            _value(item.byte_end, row, row.chain_bytes[1]),
        )
        for row, item in zip(rows, encoded, strict=True)
    ]


def _answer(
    tokenizer: PreTrainedTokenizerBase, row: ChainRow, question: np.ndarray, whole: EncodedRow
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the answer and its end token, and the bytes of prompt + answer they end at.

    From the row as one text, or alone where a token would reach across the border.
    """
    cut = len(question)
    if np.array_equal(whole.input_ids[:cut], question):
        return whole.input_ids[cut:], whole.byte_end[cut:]
    alone = tokenizer(row.answer, add_special_tokens=False, return_offsets_mapping=True)
    ends = byte_ends(row.answer, alone["offset_mapping"])
    shifted = np.where(ends == NOT_A_BOUNDARY, NOT_A_BOUNDARY, ends + len(row.prompt.encode()))
    ids = np.array([*alone["input_ids"], whole.input_ids[-1]], dtype=np.int64)
    return ids, np.append(shifted, NOT_A_BOUNDARY).astype(np.int32)


def _laid_out(
    student: LatentStudent, row: ChainRow, asked: EncodedRow, answer: tuple[np.ndarray, np.ndarray]
) -> LatentRow:
    question = ~asked.is_target
    answer_ids, answer_ends = answer
    ids, latent_start = student.layout(asked.input_ids[question].tolist(), answer_ids.tolist())
    hidden = np.full(student.slots, NOT_A_BOUNDARY, dtype=np.int32)
    ends = np.concatenate([asked.byte_end[question], hidden, answer_ends])
    starts = byte_starts(ends)
    starts[:1] = NOT_A_BOUNDARY
    is_target = np.arange(len(ids)) >= len(ids) - len(answer_ids)
    value = max(_value(ends, row, len(row.prompt.encode())), len(ids) - len(answer_ids) - 1)
    return LatentRow(np.array(ids, dtype=np.int64), starts, ends, is_target, latent_start, value)


def _value(byte_end: np.ndarray, row: ChainRow, answer_start: int) -> int:
    """The last token before the answer's value. CODI (zhenyi4/codi) takes the one behind its ":" for Llama and Qwen, whose tokenizers
    write a blank before digits; here each row's own tokens say."""
    before = (byte_end >= 0) & (byte_end <= answer_start + len(row.announced.encode()))
    return int(np.flatnonzero(before).max(initial=0))
