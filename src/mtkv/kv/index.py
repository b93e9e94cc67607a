"""Look up in which shard of a store a row is, and where: `index.parquet` in memory, in 32 bytes a row.

Ids are kept as digests of eight bytes. Two of a million rows share one in one of some forty million stores, which is an error.
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
    """The rows of one store, sorted by the digest of their id.

    `shards`: file names, with the `sha256` of each. Entry i of the arrays is one row: `digest` of its id, `shard` (number in `shards`),
    `start` and `length` (its tokens in that shard), and the teacher's `likelihood` of it.
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
        """Read `index.parquet`. Raises ValueError when two rows have the same id or digest."""
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
        """(shard number, start, length) of the row with this id. Raises KeyError for a row that is not in the store."""
        place = self._place(row)
        return int(self.shard[place]), int(self.start[place]), int(self.length[place])

    def likelihood_of(self, row: str) -> float:
        """The teacher's mean log-probability of the row's target tokens. Raises KeyError for a row that is not in the store."""
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
