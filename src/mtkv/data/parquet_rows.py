"""Read rows of text from parquet files in batches, for data that does not fit in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from mtkv.data.validation import check_rows

COLUMNS = ("id", "dataset", "style", "prompt", "target", "prompt_end", "reasoning_end")
PIECE = 1000  # default number of rows in memory at once
READ_BYTES = 1 << 20  # without a buffer, pyarrow reads a whole column of a row group at once


@dataclass(frozen=True)
class RowFile:
    """The rows of a parquet file that are written in one of `styles` (None: all), the first `limit` of them (None: all)."""

    path: Path
    styles: Sequence[str] | None = None
    limit: int | None = None
    piece: int = PIECE

    def pieces(self) -> Iterator[pd.DataFrame]:
        """The rows in the file's order, as frames of at most `piece` rows with those of `COLUMNS` that the file has."""
        left = self.limit
        with pq.ParquetFile(self.path, buffer_size=READ_BYTES) as file:
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            for batch in file.iter_batches(self.piece, columns=columns):
                frame = batch.to_pandas()
                kept = frame if self.styles is None else frame[frame["style"].isin(self.styles)]
                kept = kept.head(len(kept) if left is None else left).reset_index(drop=True)
                if len(kept):
                    yield kept
                left = None if left is None else left - len(kept)
                if left == 0:
                    return


def check_files(files: Sequence[RowFile], where: str) -> None:
    """`check_rows` of all rows of `files` together, in batches: only an 8-byte hash of each row's id stays in memory."""
    seen = []
    for frame in _all_pieces(files):
        check_rows(frame, where)
        seen.append(_hashes(frame))
    hashes, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *seen]), return_counts=True)
    suspects = hashes[counts > 1]
    if len(suspects):
        check_rows(pd.concat([frame[np.isin(_hashes(frame), suspects)] for frame in _all_pieces(files)]), where)


def _all_pieces(files: Sequence[RowFile]) -> Iterator[pd.DataFrame]:
    return (frame for file in files for frame in file.pieces())


def _hashes(frame: pd.DataFrame) -> np.ndarray:
    return pd.util.hash_array(frame["id"].to_numpy(dtype=object), categorize=False)
