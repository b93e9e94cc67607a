"""The training set of an arm with latents: rows without their chain, the same rows with it, and the teachers' KV of it at the latents.

A slot is supervised where every teacher of the arm has a selected token of the chain; slots without one are out of the loss.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from mtkv.distill.chain import ChainRow, chain_rows
from mtkv.distill.latent_encode import LatentRow, encode_latent, encode_traces
from mtkv.distill.latent_sources import ChainReader, ChainSource, OwnSource
from mtkv.distill.rows import DistillationRows, Match, controlled
from mtkv.distill.slots import slot_count
from mtkv.distill.sources import row_seed
from mtkv.models.crossentropy import padded_labels
from mtkv.models.encode import pad_batch
from mtkv.models.latent import LatentStudent

if TYPE_CHECKING:
    from mtkv.config.kv import KVConfig
    from mtkv.config.latent import LatentConfig


class LatentRows(DistillationRows):
    """Rows of one split for one arm with latents; all must be of style cot.

    `teachers`: one `ChainSource` each, or the `OwnSource` alone. Raises ValueError as `DistillationRows` does.
    """

    encoded: list[LatentRow]  # type: ignore[assignment]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Any,
        student: LatentStudent,
        config: "LatentConfig",
        kv: "KVConfig | None",
        teachers: Sequence[ChainSource | OwnSource],
        seed: int,
        max_length: int | None,
    ) -> None:
        parts = chain_rows(rows, config.keep_last_step)
        self.encoded = encode_latent(tokenizer, student, parts, max_length)
        self.ids, self.datasets = list(rows["id"]), list(rows["dataset"])
        self.pad_token_id = tokenizer.pad_token_id
        self.readers = list(teachers)
        self.teachers = [teacher for teacher in teachers if isinstance(teacher, ChainSource)]
        self.reads_chain = config.chain_weight > 0 or config.codi_weight > 0 or bool(kv and kv.own)
        self.traces = encode_traces(tokenizer, parts, max_length) if self.reads_chain else []
        before = student.latent.before
        self._follows = [  # whether the chain's row begins with the very tokens of the question
            np.array_equal(trace.input_ids[: trace.latent_start], row.input_ids[: row.latent_start - before])
            for row, trace in zip(self.encoded, self.traces, strict=False)
        ]
        self._place = {row: index for index, row in enumerate(self.ids)}
        for teacher in teachers:
            if isinstance(teacher, OwnSource):
                teacher.rows.update(zip(self.ids, self.traces, strict=True))
        self.matches = []
        if kv and teachers:
            slots = student.latent.tokens
            true = [self._slots(part, row, kv, slots) for part, row in zip(parts, self.encoded, strict=True)]
            self.matches = controlled(true, kv.control, seed)

    @property
    def sources(self) -> Sequence[ChainSource | OwnSource]:
        """All teachers of the arm, the student itself among them."""
        return self.readers

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """As in the text view, with placeholders in input_ids, and latent_start, value `[batch]`; where the chain is read,
        text_input_ids and text_labels `[batch, text_time]` and text_value `[batch]`, and text_start where all rows with their chain
        begin with the question's own tokens; for the student's own KV, see `_own_batch`."""
        rows = [self.encoded[index] for index in indices]
        batch = self._text_batch(rows) | {name: _numbers(rows, name) for name in ("latent_start", "value")}
        if self.reads_chain:
            traces = [self.traces[index] for index in indices]
            batch |= {
                "text_input_ids": _padded_ids(traces, self.pad_token_id),
                "text_labels": padded_labels(traces),
                "text_value": _numbers(traces, "value"),
            }
            if all(self._follows[index] for index in indices):
                batch["text_start"] = _numbers(traces, "latent_start")
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

    def _slots(self, part: ChainRow, row: LatentRow, kv: "KVConfig", slots: int) -> Match:
        """The row's first latents, each with the number of the token that is selected for it."""
        self._check_known(part.id, self.readers)
        readers: list[ChainReader] = list(self.readers)
        chains = [reader.chain(part.id, *part.chain_bytes) for reader in readers]
        count = min(slot_count(kv.select, len(chain), slots) for chain in chains)
        for reader, chain in zip(readers, chains, strict=True):
            reader.keep(part.id, chain, count)
        ordinal = np.arange(count)[:, None]
        weight = np.ones_like(ordinal, dtype=np.float32)
        return Match(part.id, row.latent_start + np.arange(count), [ordinal] * len(readers), [weight] * len(readers))


def _padded_ids(rows: Sequence[LatentRow], pad: int) -> torch.Tensor:
    return torch.from_numpy(pad_batch([row.input_ids for row in rows], pad))


def _numbers(rows: Sequence[LatentRow], name: str) -> torch.Tensor:
    return torch.tensor([getattr(row, name) for row in rows])
