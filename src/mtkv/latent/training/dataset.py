"""The training set of an arm with latents: rows without their chain, the same rows with it, and the teachers' KV of it at the latents.

A row as the student reads it: the question's tokens, placeholders for the latents, the answer's tokens. The question is cut into tokens
alone, as when it is asked, so that no token reaches across the latents. A slot is supervised where every teacher of the arm has a
selected token of the chain; slots without one are out of the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from mtkv.distill.controls import controlled
from mtkv.distill.dataset import DistillationRows
from mtkv.distill.row_match import RowMatch
from mtkv.distill.teacher_kv import row_seed
from mtkv.latent.model.student import LatentStudent
from mtkv.latent.training.chain_of_thought import ChainRow, chain_rows
from mtkv.latent.training.selection import slot_count
from mtkv.latent.training.step_decoder import chain_pieces
from mtkv.latent.training.teacher_kv import ChainReader, ChainTeacherKV, SelfTeacherKV
from mtkv.models.cross_entropy import IGNORED_LABEL, padded_labels
from mtkv.models.tokenization import NOT_A_BOUNDARY, EncodedRow, byte_ends, byte_starts, encode_rows, pad_batch
from mtkv.models.tokenizer_limits import check_lengths

if TYPE_CHECKING:
    from mtkv.config.arms import TrainingConfig
    from mtkv.config.kv import KVConfig
    from mtkv.config.latent import LatentConfig


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
    """Position of the last token before the answer's value. CODI (zhenyi4/codi) takes the one behind its ":" for Llama and Qwen,
    whose tokenizers write a blank before digits; here each row's own tokens say."""
    before = (byte_end >= 0) & (byte_end <= answer_start + len(row.announced.encode()))
    return int(np.flatnonzero(before).max(initial=0))


@dataclass(frozen=True)
class LatentArm:
    """The settings of one training with latents."""

    training: "TrainingConfig"
    latent: "LatentConfig"
    kv: "KVConfig | None"
    seed: int


class LatentRows(DistillationRows):
    """Rows of one split for one arm with latents; all must be of style cot.

    `teachers`: one `ChainTeacherKV` each, or the `SelfTeacherKV` alone. Raises ValueError as `DistillationRows` does.
    """

    encoded: list[LatentRow]  # type: ignore[assignment]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Any,
        student: LatentStudent,
        arm: LatentArm,
        teachers: Sequence[ChainTeacherKV | SelfTeacherKV],
    ) -> None:
        config, kv, max_length = arm.latent, arm.kv, arm.training.max_length
        parts = chain_rows(rows, config.keep_last_step)
        self.encoded = encode_latent(tokenizer, student, parts, max_length)
        self.ids, self.datasets = list(rows["id"]), list(rows["dataset"])
        self.pad_token_id = tokenizer.pad_token_id
        self.readers = list(teachers)
        self.teachers = [teacher for teacher in teachers if isinstance(teacher, ChainTeacherKV)]
        self.reads_chain = config.chain_weight > 0 or config.codi_weight > 0 or bool(kv and kv.own)
        traces = encode_traces(tokenizer, parts, max_length) if self.reads_chain or config.step_weight else []
        self.traces = traces if self.reads_chain else []
        self.pieces = None
        if config.step_weight:
            ends = [part.chain_bytes[1] for part in parts]
            self.pieces = [chain_pieces(*row, config.tokens) for row in zip(traces, ends, strict=True)]
        before = student.latent.before
        self._follows = [  # whether the chain's row begins with the very tokens of the question
            np.array_equal(trace.input_ids[: trace.latent_start], row.input_ids[: row.latent_start - before])
            for row, trace in zip(self.encoded, self.traces, strict=False)
        ]
        self._place = {row: index for index, row in enumerate(self.ids)}
        for teacher in teachers:
            if isinstance(teacher, SelfTeacherKV):
                teacher.rows.update(zip(self.ids, self.traces, strict=True))
        self.lengths = [len(row.input_ids) for row in self.encoded]
        self.matches = []
        if kv and teachers:
            slots = student.latent.tokens
            true = [self._slots(part, row, kv, slots) for part, row in zip(parts, self.encoded, strict=True)]
            self.matches = list(controlled(true, kv.control, arm.seed))
        self.supervised = [len(match.position) for match in self.matches]

    @property
    def sources(self) -> Sequence[ChainTeacherKV | SelfTeacherKV]:
        """All teachers of the arm, the student itself among them."""
        return self.readers

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """As in the text view, with placeholders in input_ids, and latent_start, value `[batch]`; where the chain is read,
        text_input_ids and text_labels `[batch, text_time]` and text_value `[batch]`, and text_start where all rows with their chain
        begin with the question's own tokens; for SIM-CoT's decoder step_labels `[pieces, step_time]`, step_row and step_latent
        `[pieces]`; for the student's own KV, see `_own_batch`."""
        rows = [self.encoded[index] for index in indices]
        batch = (
            self._text_batch(rows)
            | self._task(indices)
            | {name: _numbers(rows, name) for name in ("latent_start", "value")}
        )
        if self.reads_chain:
            traces = [self.traces[index] for index in indices]
            batch |= {
                "text_input_ids": _padded_ids(traces, self.pad_token_id),
                "text_labels": padded_labels(traces),
                "text_value": _numbers(traces, "value"),
            }
            if all(self._follows[index] for index in indices):
                batch["text_start"] = _numbers(traces, "latent_start")
        if self.pieces is not None:
            batch |= _piece_batch([self.pieces[index] for index in indices])
        if not self.matches:
            return batch
        return batch | self._teacher_batch(indices) | ({} if self.teachers else self._own_batch(indices))

    def _own_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """own_input_ids, own_chain (tokens to select from), own_answer (that attend to them) `[batch, own_time]`, own_count and own_seed
        `[batch]`, own_ordinal `[tokens]`: which selected token supervises each slot."""
        matches = [self.matches[index] for index in indices]
        (own,) = self.readers
        read = [self.traces[self._place[match.row]] for match in matches]
        chosen = [own.kept[match.row] for match in matches]
        chain = [np.isin(np.arange(len(row.input_ids)), tokens) for row, (tokens, _) in zip(read, chosen, strict=True)]
        answer = [
            row.is_target & (np.arange(len(row.input_ids)) > tokens.max(initial=row.latent_start - 1))
            for row, (tokens, _) in zip(read, chosen, strict=True)
        ]
        return {
            "own_input_ids": _padded_ids(read, self.pad_token_id),
            "own_chain": torch.from_numpy(pad_batch(chain, False)),
            "own_answer": torch.from_numpy(pad_batch(answer, False)),
            "own_count": torch.tensor([count for _, count in chosen]),
            "own_seed": torch.tensor([row_seed(match.row) for match in matches]),
            "own_ordinal": torch.from_numpy(np.concatenate([match.tokens[0][:, 0] for match in matches])),
        }

    def _slots(self, part: ChainRow, row: LatentRow, kv: "KVConfig", slots: int) -> RowMatch:
        """The row's first latents, each with the number of the token that is selected for it."""
        self._check_known(part.id, self.readers)
        readers: list[ChainReader] = list(self.readers)
        chains = [reader.chain(part.id, *part.chain_bytes) for reader in readers]
        count = min(slot_count(kv.select, len(chain), slots) for chain in chains)
        for reader, chain in zip(readers, chains, strict=True):
            reader.keep(part.id, chain, count)
        ordinal = np.arange(count)[:, None]
        weight = np.ones_like(ordinal, dtype=np.float32)
        return RowMatch(part.id, row.latent_start + np.arange(count), [ordinal] * len(readers), [weight] * len(readers))


def _padded_ids(rows: Sequence[LatentRow], pad: int) -> torch.Tensor:
    return torch.from_numpy(pad_batch([row.input_ids for row in rows], pad))


def _numbers(rows: Sequence[LatentRow], name: str) -> torch.Tensor:
    return torch.tensor([getattr(row, name) for row in rows])


def _piece_batch(rows: Sequence[Sequence[np.ndarray]]) -> dict[str, torch.Tensor]:
    """The pieces of all rows, one after the other; which row and which of its latents each is of."""
    found = [(row, latent, piece) for row, pieces in enumerate(rows) for latent, piece in enumerate(pieces)]
    ids = [piece for _, _, piece in found] or [np.empty(0, dtype=np.int64)]
    return {
        "step_labels": torch.from_numpy(pad_batch(ids, IGNORED_LABEL))[: len(found)],
        "step_row": torch.tensor([row for row, _, _ in found], dtype=torch.long),
        "step_latent": torch.tensor([latent for _, latent, _ in found], dtype=torch.long),
    }
