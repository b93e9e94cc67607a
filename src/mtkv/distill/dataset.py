"""The training set of one arm: the student's tokens, and for KV arms the teachers' KV at the tokens they share.

In: rows of text, the teachers' KV, the arm's control. Out: batches for the `Distiller`. A token is supervised where every
teacher of the arm has matching tokens.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mtkv.data.rows import segment_ends
from mtkv.distill.controls import controlled
from mtkv.distill.row_match import RowMatch
from mtkv.distill.teacher_kv import Source, row_seed
from mtkv.models.cross_entropy import padded_labels
from mtkv.models.tokenization import EncodedRow, encode_rows, pad_batch


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
