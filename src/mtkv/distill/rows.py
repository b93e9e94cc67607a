"""The training set of one arm: the student's tokens, and for KV arms the teachers' KV at the tokens they share.

In: rows of text, the KV stores, the arm's control. Out: batches for the `Distiller`. A token is supervised where every
teacher of the arm has a token that ends at the same byte.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mtkv.align.tokens import synchronised_tokens
from mtkv.distill.crossentropy import IGNORED_LABEL
from mtkv.kv.store import KVStore
from mtkv.models.encode import EncodedRow, encode_rows, pad_batch


@dataclass(frozen=True)
class Match:
    """Where one row is supervised: `position [n]` in the student's tokens, and per teacher the `tokens [n]` of stored row `row`."""

    row: str
    position: np.ndarray
    tokens: list[np.ndarray]


@dataclass(frozen=True)
class TeacherKV:
    """One teacher as an arm reads it: its store and, for each student layer, the place of the mapped layer in the store."""

    store: KVStore
    layer_places: list[int]


class DistillationRows(Dataset[int]):
    """Rows of one split for one arm. Items are row numbers; `collate` builds the batch.

    Raises ValueError when a row is missing from a store or no row has a supervised token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Any,
        teachers: Sequence[TeacherKV],
        control: str,
        seed: int,
        max_length: int | None,
    ) -> None:
        self.encoded = encode_rows(tokenizer, list(rows["prompt"]), list(rows["target"]), max_length)
        self.datasets = list(rows["dataset"])
        self.teachers = list(teachers)
        self.pad_token_id = tokenizer.pad_token_id
        self.matches: list[Match] = []
        if teachers:
            true = [self._match(row, item) for row, item in zip(rows["id"], self.encoded, strict=True)]
            if not any(len(match.position) for match in true):
                raise ValueError(
                    "no token of any row ends at the same byte in the student's and all teachers' tokenizations"
                )
            self.matches = CONTROLS.get(control, _keep)(true, np.random.default_rng(seed))

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """input_ids, attention_mask, labels `[batch, time]`; for KV arms kv_sample, kv_position `[tokens]` and teacher_kv, a list
        of `[tokens, student_layers, 2, teacher_width]` in the stores' dtype."""
        rows = [self.encoded[index] for index in indices]
        labels = [np.where(row.is_target, row.input_ids, IGNORED_LABEL) for row in rows]
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(pad_batch([row.input_ids for row in rows], self.pad_token_id)),
            "attention_mask": torch.from_numpy(pad_batch([np.ones_like(row.input_ids) for row in rows], 0)),
            "labels": torch.from_numpy(pad_batch(labels, IGNORED_LABEL)),
        }
        return batch | (self._teacher_batch(indices) if self.teachers else {})

    def _teacher_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        matches = [self.matches[index] for index in indices]
        sample = np.repeat(np.arange(len(matches)), [len(match.position) for match in matches])
        return {
            "kv_sample": torch.from_numpy(sample),
            "kv_position": torch.from_numpy(np.concatenate([match.position for match in matches])),
            "teacher_kv": [
                torch.cat(
                    [teacher.store.read(match.row, match.tokens[i])[:, teacher.layer_places] for match in matches]
                )
                for i, teacher in enumerate(self.teachers)
            ],
        }

    def _match(self, row: str, encoded: EncodedRow) -> Match:
        missing = [number for number, teacher in enumerate(self.teachers) if row not in teacher.store]
        if missing:
            raise ValueError(f"row {row}: not in the KV store of teacher number {missing[0]} of this arm")
        tokens = np.stack(
            [synchronised_tokens(encoded.byte_end, teacher.store.byte_end(row)) for teacher in self.teachers]
        )
        position = np.flatnonzero((tokens >= 0).all(0))
        return Match(row, position, list(tokens[:, position]))


def _keep(matches: list[Match], rng: np.random.Generator) -> list[Match]:
    return matches


def shuffle_items(matches: list[Match], rng: np.random.Generator) -> list[Match]:
    """Another row's teacher KV for every row (method.md §9): one fixed partner each, never the row itself.

    The supervised positions stay the row's own; the r-th takes the partner's r-th matched token (counted around when the partner has
    fewer), so amount, order and statistics of the supervision are those of the true arm and only its content is wrong.
    """
    usable = [index for index, match in enumerate(matches) if len(match.position)]
    order = rng.permutation(usable)
    partner = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [
        _with_tokens_of(match, matches[partner[index]]) if index in partner else match
        for index, match in enumerate(matches)
    ]


def shuffle_time(matches: list[Match], rng: np.random.Generator) -> list[Match]:
    """The row's own teacher KV at permuted tokens."""
    orders = [rng.permutation(len(match.position)) for match in matches]
    return [
        replace(match, tokens=[tokens[order] for tokens in match.tokens])
        for match, order in zip(matches, orders, strict=True)
    ]


CONTROLS: dict[str, Callable[[list[Match], np.random.Generator], list[Match]]] = {
    "shuffle_items": shuffle_items,
    "shuffle_time": shuffle_time,
}


def _with_tokens_of(match: Match, partner: Match) -> Match:
    rank = np.arange(len(match.position)) % len(partner.position)
    return Match(partner.row, match.position, [tokens[rank] for tokens in partner.tokens])
