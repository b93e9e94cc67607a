"""The training set of one arm: the student's tokens, and for KV arms the teachers' KV at the tokens they share.

In: rows of text, the teachers' KV, the arm's control. Out: batches for the `Distiller`. A token is supervised where every
teacher of the arm has matching tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mtkv.data.rows import segment_ends
from mtkv.distill.teacher_kv import Source, row_seed
from mtkv.models.cross_entropy import padded_labels
from mtkv.models.tokenization import EncodedRow, encode_rows, pad_batch


@dataclass(frozen=True)
class RowMatch:
    """Where one row is supervised, and by what: its token `position[i]` by Σⱼ weight[i, j] · KV of token `tokens[i, j]` of row `row`.

    `position [n]`; `tokens` and `weight`, both `[n, k]`, one each per teacher. `row` is another row's id under `shuffle_items`.
    """

    row: str
    position: np.ndarray
    tokens: list[np.ndarray]
    weight: list[np.ndarray]


class DistillationRows(Dataset[int]):
    """Rows of one split for one arm. Items are row numbers; `collate` builds the batch.

    `rows`: id, dataset, prompt, target, and for `resample` prompt_end and reasoning_end. Raises ValueError when a row is missing from a
    teacher or no row has a supervised token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Any,
        teachers: Sequence[Source],
        control: str,
        seed: int,
        max_length: int | None,
    ) -> None:
        self.encoded: Sequence[EncodedRow] = encode_rows(
            tokenizer, list(rows["prompt"]), list(rows["target"]), max_length
        )
        self.ids: Sequence[str] = list(rows["id"])
        self.datasets: Sequence[str] = list(rows["dataset"])
        self.teachers = list(teachers)
        self.pad_token_id = tokenizer.pad_token_id
        self.matches: Sequence[RowMatch] = []
        if teachers:
            true = [
                self._match(row, item, ends)
                for row, item, ends in zip(self.ids, self.encoded, segment_ends(rows), strict=True)
            ]
            self.matches = controlled(true, control, seed)

    @property
    def sources(self) -> Sequence[Any]:
        """All teachers of the arm."""
        return self.teachers

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""
        return [len(row.input_ids) for row in self.encoded]

    @property
    def supervised(self) -> Sequence[int]:
        """Supervised tokens of each row; empty for arms without KV."""
        return [len(match.position) for match in self.matches]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """input_ids, attention_mask, labels `[batch, time]`; for KV arms kv_sample, kv_position `[tokens]`, row_seed `[batch]`,
        likelihood `[batch, teachers]` and teacher_kv, a list of `[tokens, student_layers, 2, teacher_width]` in the stores' dtype."""
        batch = self._text_batch([self.encoded[index] for index in indices])
        return batch | (self._teacher_batch(indices) if self.teachers else {})

    def _text_batch(self, rows: Sequence[EncodedRow]) -> dict[str, Any]:
        return {
            "input_ids": torch.from_numpy(pad_batch([row.input_ids for row in rows], self.pad_token_id)),
            "attention_mask": torch.from_numpy(pad_batch([np.ones_like(row.input_ids) for row in rows], 0)),
            "labels": padded_labels(rows),
        }

    def _teacher_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        matches = [self.matches[index] for index in indices]
        read = [match.row for match in matches]
        sample = np.repeat(np.arange(len(matches)), [len(match.position) for match in matches])
        return {
            "kv_sample": torch.from_numpy(sample),
            "kv_position": torch.from_numpy(np.concatenate([match.position for match in matches])),
            "teacher_kv": [
                teacher.read(read, [match.tokens[i] for match in matches], [match.weight[i] for match in matches])
                for i, teacher in enumerate(self.teachers)
            ],
            "row_seed": torch.tensor([row_seed(self.ids[index]) for index in indices]),
            "likelihood": torch.tensor([[teacher.likelihood(row) for teacher in self.teachers] for row in read]),
        }

    def _match(self, row: str, encoded: EncodedRow, segments: tuple[int, int] | None) -> RowMatch:
        self._check_known(row, self.teachers)
        found = [teacher.match(row, encoded, segments) for teacher in self.teachers]
        position = reduce(np.intersect1d, [match.position for match in found])
        places = [np.searchsorted(match.position, position) for match in found]
        return RowMatch(
            row,
            position,
            [match.tokens[place] for match, place in zip(found, places, strict=True)],
            [match.weight[place] for match, place in zip(found, places, strict=True)],
        )

    @staticmethod
    def _check_known(row: str, teachers: Sequence[Any]) -> None:
        missing = [number for number, teacher in enumerate(teachers) if row not in teacher]
        if missing:
            raise ValueError(f"row {row}: not in the KV of teacher number {missing[0]} of this arm")


def controlled(true: list[RowMatch], control: str, seed: int) -> list[RowMatch]:
    """The matches as the arm's control changes them (`CONTROLS`, method.md §9). Raises ValueError when nothing is matched."""
    check_matched([len(match.position) for match in true])
    return CONTROLS.get(control, _keep)(true, np.random.default_rng(seed))


def check_matched(supervised: Sequence[int]) -> None:
    """Raises ValueError when no row has a supervised token."""
    if not any(supervised):
        raise ValueError("no token of any row is matched with a token of every teacher of this arm")


def _keep(matches: list[RowMatch], rng: np.random.Generator) -> list[RowMatch]:
    return matches


def shuffle_items(matches: list[RowMatch], rng: np.random.Generator) -> list[RowMatch]:
    """Another row's teacher KV for every row (method.md §9): one fixed partner each, never the row itself.

    The supervised positions stay the row's own; the r-th takes the partner's r-th matched token (from its first again where it has
    fewer), so amount, order and statistics of the supervision are those of the true arm and only its content is wrong.
    """
    partner = partners([len(match.position) for match in matches], rng)
    return [
        match if partner[index] == index else with_tokens_of(match, matches[partner[index]])
        for index, match in enumerate(matches)
    ]


def partners(supervised: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """For each row the number of the row whose tokens it gets `[rows]`: one random cycle through the rows with supervised tokens.

    Rows without any keep to themselves: [3, 0, 2] supervised tokens give [2, 1, 0].
    """
    partner = np.arange(len(supervised))
    order = rng.permutation(np.flatnonzero(supervised))
    partner[order] = np.roll(order, 1)
    return partner


def shuffle_time(matches: list[RowMatch], rng: np.random.Generator) -> list[RowMatch]:
    """The row's own teacher KV at permuted tokens."""
    return [in_permuted_time(match, rng) for match in matches]


def in_permuted_time(match: RowMatch, rng: np.random.Generator) -> RowMatch:
    """The positions of `match`, supervised by its own tokens in random order."""
    return _reordered(match, match, rng.permutation(len(match.position)))


CONTROLS: dict[str, Callable[[list[RowMatch], np.random.Generator], list[RowMatch]]] = {
    "shuffle_items": shuffle_items,
    "shuffle_time": shuffle_time,
}


def with_tokens_of(match: RowMatch, partner: RowMatch) -> RowMatch:
    """The positions of `match`, supervised by the tokens of `partner` one after the other, from the first again where it has fewer."""
    return _reordered(match, partner, np.arange(len(match.position)) % len(partner.position))


def _reordered(match: RowMatch, source: RowMatch, order: np.ndarray) -> RowMatch:
    """The positions of `match`, supervised by the tokens of `source` in the given order."""
    tokens, weight = ([part[order] for part in parts] for parts in (source.tokens, source.weight))
    return RowMatch(source.row, match.position, tokens, weight)
