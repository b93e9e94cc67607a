"""The training set of one arm: the student's tokens, and for KV arms the teachers' KV at the tokens they share.

In: rows of text, the teachers' KV, the arm's control. Out: batches for the `Distiller`. A token is supervised where every
teacher of the arm has matching tokens.
"""

import sys
from array import array
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mtkv.data.rows import RowFile, segment_ends
from mtkv.distill.controls import controlled
from mtkv.distill.list_on_disk import ListOnDisk
from mtkv.distill.row_match import RowMatch
from mtkv.distill.teacher_kv import Source, TeacherFiles, row_seed
from mtkv.fuse.routers import task_number
from mtkv.models.cross_entropy import padded_labels
from mtkv.models.tokenization import EncodedRow, encode_rows, pad_batch

if TYPE_CHECKING:
    from mtkv.config.latent import LatentConfig


class DistillationRows(Dataset[int]):
    """Rows of one split for one arm. Items are row numbers; `collate` builds the batch.

    `rows`: id, dataset, prompt, target, and for `resample` prompt_end and reasoning_end: a frame, whose rows and matches are kept in
    memory, or a file, whose are kept on disk for the same batches; then in memory stay some thirty bytes of each row. `lengths` and
    `supervised` count the tokens of each row and those of them that are supervised (empty for arms without KV).

    Raises ValueError when a row is missing from a teacher or no row has a supervised token, OSError when the disk for temporary files
    is full.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: pd.DataFrame | RowFile,
        teachers: Sequence[Source],
        control: str,
        seed: int,
        max_length: int | None,
    ) -> None:
        self.teachers = list(teachers)
        self.pad_token_id = tokenizer.pad_token_id
        new: Callable[[], Any] = ListOnDisk if isinstance(rows, RowFile) else list
        self.ids: Sequence[str] = (ids := new())
        self.encoded: Sequence[EncodedRow] = (encoded := new())
        self.datasets: list[str] = []
        self.lengths: Sequence[int] = (lengths := array("i"))
        self.supervised: Sequence[int] = (supervised := array("i"))
        true = new()
        for piece in rows.pieces() if isinstance(rows, RowFile) else [rows]:
            items = _encoded(tokenizer, piece, max_length, rows, len(lengths))
            ids.extend(piece["id"])
            encoded.extend(items)
            self.datasets.extend(map(sys.intern, piece["dataset"]))
            lengths.extend(len(item.input_ids) for item in items)
            if teachers:
                found = list(map(self._match, piece["id"], items, segment_ends(piece)))
                true.extend(found)
                supervised.extend(len(match.position) for match in found)
        self.matches: Sequence[RowMatch] = true
        if teachers and (changed := controlled(true, control, seed)) is not true:
            self.matches = (wrong := new())
            wrong.extend(changed)

    @property
    def sources(self) -> Sequence[Any]:
        """All teachers of the arm."""
        return self.teachers

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """input_ids, attention_mask, labels `[batch, time]`, task `[batch]`; for KV arms kv_sample, kv_position `[tokens]`, row_seed
        `[batch]`, the row statistics that its router reads `[batch, teachers]`, by name, and teacher_kv, a list of
        `[tokens, student_layers, 2, teacher_width]` in the stores' dtype.
        """
        batch = self._text_batch([self.encoded[index] for index in indices]) | self._task(indices)
        return batch | (self._teacher_batch(indices) if self.teachers else {})

    def _task(self, indices: Sequence[int]) -> dict[str, Any]:
        return {"task": torch.tensor([task_number(self.datasets[index]) for index in indices])}

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
        batch = {
            "kv_sample": torch.from_numpy(sample),
            "kv_position": torch.from_numpy(np.concatenate([match.position for match in matches])),
            "teacher_kv": [
                teacher.read(read, [match.tokens[i] for match in matches], [match.weight[i] for match in matches])
                for i, teacher in enumerate(self.teachers)
            ],
            "row_seed": torch.tensor([row_seed(self.ids[index]) for index in indices]),
        }
        for name in self.teachers[0].statistics(read[0]) if self.teachers else ():
            batch[name] = torch.tensor([[teacher.statistics(row)[name] for teacher in self.teachers] for row in read])
        return batch

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


def check_streamable(teachers: Sequence[TeacherFiles], latent: "LatentConfig | None") -> None:
    """Raises NotImplementedError for an arm whose rows are all in memory anyway."""
    online = any(teacher.store is None for teacher in teachers)
    if latent or online:
        what = "student_view latent" if latent else "a teacher of teachers.mode online"
        raise NotImplementedError(f"{what} keeps all rows in memory for now: resources.train.stream false")


def _encoded(
    tokenizer: PreTrainedTokenizerBase, piece: pd.DataFrame, max_length: int | None, rows: Any, first: int
) -> list[EncodedRow]:
    """`piece` of `rows` as the student reads it; `first`: number of its first row, said with an error where rows are a file."""
    try:
        return encode_rows(tokenizer, list(piece["prompt"]), list(piece["target"]), max_length)
    except ValueError as error:
        if isinstance(rows, RowFile):
            error.add_note(f"rows are counted from number {first} of {rows.path}, whose id is {piece['id'].iloc[0]!r}")
        raise
