"""A teacher's keys and values on disk: a folder of shards and their index (method.md §12).

Two tiers share the shards' layout (see `mtkv.kv.shards`): `raw` is the teacher's space and time (keys before RoPE; byte_start,
byte_end, importance), `mapped` the student's, ready for the loss (position). `index.parquet` says where each row lies, its statistics and
the sha256 of its shard. In memory it takes 24 bytes a row and 4 for each statistic asked for: ids are kept as digests of eight bytes.
Two of a million rows share one in one of some forty million stores, which is an error.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from mtkv.kv.row_statistics import ROW_STATISTICS
from mtkv.kv.shards import REDO, Shard
from mtkv.provenance.digest import file_digest
from mtkv.provenance.files import write_parquet

PIECE = 1000  # rows of the index read at once
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class StoreIndex:
    """The rows of one store, sorted by the digest of their id.

    `shards`: file names, with the `sha256` of each. Entry i of the arrays is one row: `digest` of its id, `shard` (number in `shards`),
    `start` and `length` (its tokens in that shard), and by name those `statistics` of it that were asked for.
    """

    shards: list[str]
    sha256: list[str]
    digest: UInt64[np.ndarray, " rows"]
    shard: Int[np.ndarray, " rows"]
    start: Int[np.ndarray, " rows"]
    length: Int[np.ndarray, " rows"]
    statistics: dict[str, Float[np.ndarray, " rows"]]

    @classmethod
    def read(cls, path: Path, statistics: Sequence[str] = ()) -> "StoreIndex":
        """Read `index.parquet` with the row `statistics` of these names.

        Raises ValueError when one is not there, or two rows have the same id or digest.
        """
        sums: dict[str, str] = {}
        parts = []
        columns = {"shard": np.int32, "start": np.int64, "length": np.int32} | dict.fromkeys(statistics, np.float32)
        with pq.ParquetFile(path, buffer_size=READ_BYTES) as file:
            if missing := set(statistics).difference(file.schema_arrow.names):
                raise ValueError(
                    f"store of teacher {path.parent.name} has no {min(missing)}, by which an arm weighs its teachers ({path.parent}); run "
                    "its extraction again (snakemake --forcerun teacher_kv), which notes what the study's arms ask for"
                )
            for batch in file.iter_batches(PIECE, columns=["id", "sha256", *columns]):
                rows = batch.to_pandas()
                sums |= dict(zip(rows["shard"], rows["sha256"], strict=True))
                number = {name: i for i, name in enumerate(sums)}
                rows["shard"] = rows["shard"].map(number)
                parts.append((_digests(rows["id"]), *(rows[name].to_numpy(kind) for name, kind in columns.items())))
        joined = [np.concatenate(part) for part in zip(*parts, strict=True)]
        order = np.argsort(joined[0], kind="stable")
        digest, shard, start, length, *noted = (column[order] for column in joined)
        if (digest[1:] == digest[:-1]).any():
            raise ValueError(f"{path}: two of its rows have the same id, or ids with the same digest")
        return cls(
            list(sums), list(sums.values()), digest, shard, start, length, dict(zip(statistics, noted, strict=True))
        )

    def __contains__(self, row: str) -> bool:
        return self._find(row) is not None

    def of(self, row: str) -> tuple[int, int, int]:
        """(shard number, start, length) of the row with this id. Raises KeyError for a row that is not in the store."""
        place = self._place(row)
        return int(self.shard[place]), int(self.start[place]), int(self.length[place])

    def statistics_of(self, row: str) -> dict[str, float]:
        """The row's statistics by name. Raises KeyError for a row that is not in the store."""
        place = self._place(row)
        return {name: float(column[place]) for name, column in self.statistics.items()}

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


class StoredTimeMatch(Protocol):
    """Where a row is supervised: student tokens `position [n]`, teacher `tokens [n, k]` and their `weight [n, k]`."""

    @property
    def position(self) -> np.ndarray: ...

    @property
    def tokens(self) -> np.ndarray: ...

    @property
    def weight(self) -> np.ndarray: ...


def mapped_rows(
    store: "KVStore", matches: Iterable[tuple[str, StoredTimeMatch]], target: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, np.ndarray, Float[Tensor, "n student_layers 2 student_width"]]]:
    """Rows of the mapped tier: target(Σ_k weight·kv), where `target` gets every stored layer `[n, layers, 2, teacher_width]`."""
    for row, match in matches:
        used = np.where(match.weight > 0, match.tokens, 0)
        kv = store.read(row, used.ravel()).float().unflatten(0, used.shape)
        weight = torch.from_numpy(match.weight).float()
        yield row, match.position, target(torch.einsum("nk,nklcw->nlcw", weight, kv))


def write_index(shards: Sequence[Path], path: Path) -> dict[str, int]:
    """Write `index.parquet` (id, shard, start, length, statistics, sha256) over complete shards; returns rows, tokens, bytes.

    Raises ValueError when a row is in two shards, a shard is damaged or shards differ in layers, width, format or statistics.
    """
    frames, forms = [], {}
    for shard in shards:
        opened = Shard(shard)
        statistics = {name: opened.columns[name] for name in ROW_STATISTICS if name in opened.columns}
        forms[shard.name] = (opened.layers, opened.width, opened.kv.dtype, list(statistics))
        if forms[shard.name] != forms[shards[0].name]:
            raise ValueError(f"{shard}: layers, width, format or statistics differ from {shards[0].name}; {REDO}")
        frames.append(
            pd.DataFrame(
                {
                    "id": opened.ids,
                    "shard": shard.name,
                    "start": np.cumsum(opened.lengths) - opened.lengths,
                    "length": opened.lengths,
                }
                | statistics
                | {"sha256": file_digest(shard)}
            )
        )
    index = pd.concat(frames, ignore_index=True)
    if index["id"].duplicated().any():
        raise ValueError(f"{path}: rows in two shards: {sorted(index['id'][index['id'].duplicated()])[:5]}")
    write_parquet(path, index)
    size = sum(shard.stat().st_size for shard in shards)
    return {"rows": len(index), "tokens": int(index["length"].sum()), "bytes": size}


class _Store:
    """Read access to the shards of one folder. `layers`: the layers stored, ascending; `width`: kv_heads·head_dim."""

    def __init__(self, folder: Path, *, verify: bool = False, statistics: Sequence[str] = ()) -> None:
        """Open the store, with the row `statistics` of these names; with `verify`, recompute every checksum.

        Raises ValueError naming a damaged shard or a missing statistic, and the fix.
        """
        self.folder = folder
        self._places = StoreIndex.read(folder / "index.parquet", statistics)
        self._shards: list[Shard] = []
        for name, sha256 in zip(self._places.shards, self._places.sha256, strict=True):
            self._shards.append(Shard(folder / name))
            if verify and file_digest(folder / name) != sha256:
                raise ValueError(f"{folder / name}: its sha256 differs from index.parquet; {REDO}")
        self.layers = self._shards[0].layers
        self.width = self._shards[0].width

    def __contains__(self, row: str) -> bool:
        return row in self._places

    def prefetch(self, rows: Iterable[str]) -> None:
        """Ask the kernel to read the KV of `rows`, those of the next batches, from disk; returns at once."""
        spans: dict[int, list[tuple[int, int]]] = {}
        for row in rows:
            shard, start, length = self._places.of(row)
            spans.setdefault(shard, []).append((start, length))
        for shard, wanted in spans.items():
            self._shards[shard].will_need(wanted)

    def _column(self, name: str, row: str) -> np.ndarray:
        shard, start, length = self._places.of(row)
        if name not in self._shards[shard].columns:
            raise ValueError(f"{self.folder}: its rows were stored without {name}")
        return self._shards[shard].columns[name][start : start + length]

    def _kv(self, row: str, tokens: np.ndarray | slice) -> Tensor:
        number, start, length = self._places.of(row)
        return self._shards[number].read(start, length, tokens)


class KVStore(_Store):
    """One teacher's KV in its own space and time, tier `raw`."""

    def byte_start(self, row: str) -> Int[np.ndarray, " time"]:
        """First byte of the teacher's tokens of one row, −1 where they cannot be compared."""
        return self._column("byte_start", row)

    def byte_end(self, row: str) -> Int[np.ndarray, " time"]:
        """Byte after the teacher's tokens of one row, −1 where they cannot be compared."""
        return self._column("byte_end", row)

    def importance(self, row: str) -> Float[np.ndarray, "time layers kv_heads"]:
        """Attention that each token of one row gets from the row's answer, in each KV head of the teacher."""
        return self._column("importance", row)

    def statistics(self, row: str) -> dict[str, float]:
        """The row's statistics that the store was opened with, by name; NaN for a model without a head."""
        return self._places.statistics_of(row)

    def read(self, row: str, tokens: Int[np.ndarray, " picked"]) -> Float[Tensor, "picked layers 2 width"]:
        """KV of the given tokens of one row: in the store's format, float32 where it is quantised.

        Raises IndexError for a token outside the row.
        """
        *_, length = self._places.of(row)
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= length):
            raise IndexError(f"row {row} has {length} teacher tokens, asked for {tokens.min()}…{tokens.max()}")
        return self._kv(row, tokens)

    def read_batch(
        self, rows: Sequence[str], tokens: Sequence[Int[np.ndarray, " picked"]]
    ) -> Float[Tensor, "tokens layers 2 width"]:
        """KV of the given tokens of several rows, one row after the other."""
        return torch.cat([self.read(row, picked) for row, picked in zip(rows, tokens, strict=True)])


class MappedStore(_Store):
    """One teacher's KV under one map, tier `mapped`: what the loss compares with the student's centred and scaled KV."""

    def position(self, row: str) -> Int[np.ndarray, " n"]:
        """The supervised tokens of one row, in the student's tokenization."""
        return self._column("position", row)

    def read(self, row: str) -> Float[Tensor, "n student_layers 2 student_width"]:
        """The target at each supervised token of one row: in the store's format, float32 where it is quantised."""
        return self._kv(row, slice(None))

    def read_batch(self, rows: Sequence[str]) -> Float[Tensor, "tokens student_layers 2 student_width"]:
        """Targets of several rows, one row after the other."""
        return torch.cat([self.read(row) for row in rows])
