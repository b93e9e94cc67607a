"""Where each row of a store lies: `index.parquet` in memory, in 32 bytes a row.

Ids are known by a digest of eight bytes; that two of a million rows share one happens once in some forty million stores, and is an error.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float, Int, UInt64

PIECE = 1000  # rows of the index read at once
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class StoreIndex:
    """Rows in the order of their `digest`: number of the shard in `shards`, first token there, tokens, and likelihood.

    `sha256`: of each shard.
    """

    shards: list[str]
    sha256: list[str]
    digest: UInt64[np.ndarray, " rows"]
    shard: Int[np.ndarray, " rows"]
    start: Int[np.ndarray, " rows"]
    length: Int[np.ndarray, " rows"]
    likelihood: Float[np.ndarray, " rows"]

    @classmethod
    def read(cls, path: Path) -> "StoreIndex":
        """From an index. Raises ValueError for a row that is there twice."""
        sums: dict[str, str] = {}
        parts = []
        with pq.ParquetFile(path, buffer_size=READ_BYTES) as file:
            for batch in file.iter_batches(PIECE):
                ids, names, starts, lengths, likelihoods, digests = (
                    batch.column(name) for name in ("id", "shard", "start", "length", "likelihood", "sha256")
                )
                for name, digest in zip(names.to_pylist(), digests.to_pylist(), strict=True):
                    sums.setdefault(name, digest)
                number = {name: i for i, name in enumerate(sums)}
                parts.append(
                    (
                        _digests(ids.to_pylist()),
                        np.array([number[name] for name in names.to_pylist()], np.int32),
                        starts.to_numpy().astype(np.int64),
                        lengths.to_numpy().astype(np.int32),
                        likelihoods.to_numpy(zero_copy_only=False).astype(np.float64),
                    )
                )
        digest, *columns = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(digest, kind="stable")
        digest = digest[order]
        if (digest[1:] == digest[:-1]).any():
            raise ValueError(f"{path}: two of its rows have the same id, or ids with the same digest")
        return cls(list(sums), list(sums.values()), digest, *(column[order] for column in columns))

    def __contains__(self, row: str) -> bool:
        return self._find(row) is not None

    def of(self, row: str) -> tuple[int, int, int]:
        """Number of the shard, first token there, tokens. Raises KeyError for a row that is not in the store."""
        place = self._place(row)
        return int(self.shard[place]), int(self.start[place]), int(self.length[place])

    def likelihood_of(self, row: str) -> float:
        """As stored. Raises KeyError for a row that is not in the store."""
        return float(self.likelihood[self._place(row)])

    def _place(self, row: str) -> int:
        place = self._find(row)
        if place is None:
            raise KeyError(row)
        return place

    def _find(self, row: str) -> int | None:
        digest = _digests([row])[0]
        place = int(self.digest.searchsorted(digest))
        return place if place < len(self.digest) and self.digest[place] == digest else None


def _digests(rows: Iterable[str]) -> UInt64[np.ndarray, " rows"]:
    joined = b"".join(hashlib.blake2b(row.encode(), digest_size=8).digest() for row in rows)
    return np.frombuffer(joined, dtype=np.uint64)
