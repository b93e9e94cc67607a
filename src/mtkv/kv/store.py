"""A teacher's keys and values on disk: written shard by shard, read memory-mapped.

One shard is one safetensors file with `kv [tokens, layers, 2, kv_heads·head_dim]` (keys before RoPE at index 0, values at 1) and
`byte_end [tokens]`, rows one after the other. `index.parquet` says where each row lies and the sha256 of its shard. Only
the layers that some arm maps are stored.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mtkv.provenance.digest import file_digest
from mtkv.provenance.files import atomic_path, write_parquet

KEY, VALUE = 0, 1


@dataclass(frozen=True)
class StoredRow:
    """The KV of one row before it is packed: `kv [time, layers, 2, width]`, `byte_end [time]`."""

    id: str
    kv: Tensor
    byte_end: np.ndarray


def write_shard(path: Path, rows: Sequence[StoredRow], layers: Sequence[int]) -> None:
    """Write one shard atomically; the ids, starts and lengths of its rows travel in the file's metadata."""
    lengths = [len(row.byte_end) for row in rows]
    metadata = {
        "layers": json.dumps(list(layers)),
        "ids": json.dumps([row.id for row in rows]),
        "lengths": json.dumps(lengths),
    }
    tensors = {
        "kv": torch.cat([row.kv for row in rows]).contiguous(),
        "byte_end": torch.from_numpy(np.concatenate([row.byte_end for row in rows])),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def write_index(shards: Sequence[Path], path: Path) -> dict[str, int]:
    """Write `index.parquet` (id, shard, start, length, sha256) over complete shards; returns rows, tokens and bytes.

    Raises ValueError when a row is in two shards.
    """
    frames = []
    for shard in shards:
        with safe_open(shard, "pt") as file:
            metadata = file.metadata()
        lengths = np.array(json.loads(metadata["lengths"]), dtype=np.int64)
        frames.append(
            pd.DataFrame(
                {
                    "id": json.loads(metadata["ids"]),
                    "shard": shard.name,
                    "start": np.cumsum(lengths) - lengths,
                    "length": lengths,
                    "sha256": file_digest(shard),
                }
            )
        )
    index = pd.concat(frames, ignore_index=True)
    if index["id"].duplicated().any():
        raise ValueError(f"{path}: rows in two shards: {sorted(index['id'][index['id'].duplicated()])[:5]}")
    write_parquet(path, index)
    size = sum(shard.stat().st_size for shard in shards)
    return {"rows": len(index), "tokens": int(index["length"].sum()), "bytes": size}


class KVStore:
    """Read access to one teacher's KV. Shards are memory-mapped, so a batch touches only the pages it needs.

    `layers`: the teacher layers stored, ascending; `width`: kv_heads·head_dim.
    """

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        """Open the store; with `verify`, recompute every checksum and raise ValueError naming a damaged shard."""
        index = pd.read_parquet(folder / "index.parquet")
        self._kv: list[Tensor] = []
        self._byte_end: list[np.ndarray] = []
        self._rows: dict[str, tuple[int, int, int]] = {}
        self.layers: list[int] = []
        for number, (name, rows) in enumerate(index.groupby("shard", sort=True)):
            shard = folder / str(name)
            if verify and file_digest(shard) != rows["sha256"].iloc[0]:
                raise ValueError(f"{shard}: its sha256 differs from index.parquet; delete it and build it again")
            with safe_open(shard, "pt") as file:
                self.layers = json.loads(file.metadata()["layers"])
                self._kv.append(file.get_tensor("kv"))
                self._byte_end.append(file.get_tensor("byte_end").numpy())
            places = zip(rows["id"], rows["start"], rows["length"], strict=True)
            self._rows.update({row: (number, int(start), int(length)) for row, start, length in places})
        self.width = int(self._kv[0].shape[-1])

    def __contains__(self, row: str) -> bool:
        return row in self._rows

    def byte_end(self, row: str) -> Int[np.ndarray, " time"]:
        """Byte ends of the teacher's tokens of one row."""
        shard, start, length = self._rows[row]
        return self._byte_end[shard][start : start + length]

    def read(self, row: str, tokens: Int[np.ndarray, " picked"]) -> Float[Tensor, "picked layers 2 width"]:
        """KV of the given tokens of one row, in the store's dtype. Raises IndexError for a token outside the row."""
        shard, start, length = self._rows[row]
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= length):
            raise IndexError(f"row {row} has {length} teacher tokens, asked for {tokens.min()}…{tokens.max()}")
        return self._kv[shard][torch.from_numpy(tokens + start)]
