"""Online teachers (`teachers.mode: online`): compute a teacher's KV while the student trains, through the interface of `KVStore`.

In: a frozen model, its tokenizer and the rows. `prefetch` reads a batch in one forward; only that batch's KV is kept.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.kv.extract import RowReading, read_rows
from mtkv.models.tokenization import encode_rows


class OnlineTeacher:
    """One frozen teacher with the interface of `KVStore`. `layers`: teacher layers read; `width`: kv_heads·head_dim."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: pd.DataFrame,
        layers: Sequence[int],
        batch_size: int,
        statistics: Sequence[str] = (),
    ) -> None:
        """`rows` has the columns id, prompt and target; all of them are tokenized now. `statistics`: names of `ROW_STATISTICS`.

        Raises what `encode_rows` raises.
        """
        self.model = model.eval()
        self.layers = list(layers)
        self.batch_size = batch_size
        self._wanted = statistics
        encoded = encode_rows(tokenizer, list(rows["prompt"]), list(rows["target"]))
        self._encoded = dict(zip(rows["id"], encoded, strict=True))
        self._statistics: dict[str, Mapping[str, float]] = {}
        self._kept = self._readings(list(rows["id"][:1]))
        self.width = int(self._kept[rows["id"].iloc[0]].kv.shape[-1])

    def __contains__(self, row: str) -> bool:
        return row in self._encoded

    def byte_start(self, row: str) -> Int[np.ndarray, " time"]:
        """First byte of the teacher's tokens of one row, −1 where they cannot be compared."""
        return self._encoded[row].byte_start

    def byte_end(self, row: str) -> Int[np.ndarray, " time"]:
        """Byte after the teacher's tokens of one row, −1 where they cannot be compared."""
        return self._encoded[row].byte_end

    def prefetch(self, rows: Iterable[str]) -> None:
        """Run `rows` through the teacher, `batch_size` at once, and forget the KV of all other rows."""
        wanted = list(dict.fromkeys(rows))
        known = {row: self._kept[row] for row in wanted if row in self._kept}
        self._kept = known | self._readings([row for row in wanted if row not in known])

    def statistics(self, row: str) -> Mapping[str, float]:
        """The row's statistics by name; remembered for every row once read."""
        if row not in self._statistics:
            self._readings([row])
        return self._statistics[row]

    def read(self, row: str, tokens: Int[np.ndarray, " picked"]) -> Float[Tensor, "picked layers 2 width"]:
        """KV of the given tokens of one row, in the model's own format. Raises IndexError for a token outside the row.

        A row that was not prefetched is read now, alone, and replaces the rows kept.
        """
        length = len(self._encoded[row].input_ids)
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= length):
            raise IndexError(f"row {row} has {length} teacher tokens, asked for {tokens.min()}…{tokens.max()}")
        if row not in self._kept:
            self.prefetch([row])
        return self._kept[row].kv[torch.from_numpy(tokens)]

    def read_batch(
        self, rows: Sequence[str], tokens: Sequence[Int[np.ndarray, " picked"]]
    ) -> Float[Tensor, "tokens layers 2 width"]:
        """KV of the given tokens of several rows, one row after the other; the rows are prefetched together."""
        self.prefetch(rows)
        return torch.cat([self.read(row, picked) for row, picked in zip(rows, tokens, strict=True)])

    def _readings(self, rows: list[str]) -> dict[str, RowReading]:
        encoded = [self._encoded[row] for row in rows]
        read = read_rows(self.model, encoded, self.layers, self.batch_size, self._wanted)
        found = {rows[i]: reading for i, reading in read}
        self._statistics |= {row: reading.statistics for row, reading in found.items()}
        return found
