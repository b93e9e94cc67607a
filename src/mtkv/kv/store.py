"""A teacher's keys and values on disk: written shard by shard, read memory-mapped.

One shard is one safetensors file, rows one after the other: `kv [tokens, layers, 2, width]` (keys at index 0, values at 1; width =
kv_heads·head_dim), `scale [layers, 2, width]` in the quantised formats, and columns with one entry per token. Two tiers share it:
`raw` is the teacher's space and time (keys before RoPE; byte_start, byte_end, importance), `mapped` the student's, ready for the
loss (position). `index.parquet` says where each row lies, its likelihood and the sha256 of its shard.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mtkv.kv.quantize import STORED_DTYPES, channel_scale, dequantize, quantize
from mtkv.provenance.digest import file_digest
from mtkv.provenance.files import atomic_path, write_parquet

KEY, VALUE = 0, 1
REDO = "delete it and run the extraction again: only this shard is made anew"


@dataclass(frozen=True)
class StoredRow:
    """One row of the raw tier before it is packed: `kv [time, layers, 2, width]`, `byte_start`, `byte_end [time]`.

    `likelihood`: mean log-probability (nats) of the row's target tokens; NaN for a model without a head. `importance
    [time, layers]`: attention that each token gets from the target tokens.
    """

    id: str
    kv: Tensor
    byte_end: np.ndarray
    byte_start: np.ndarray | None = None
    likelihood: float = math.nan
    importance: Tensor | None = None


class TimeMatch(Protocol):
    """Where a row is supervised: student tokens `position [n]`, teacher `tokens [n, k]` and their `weight [n, k]`."""

    @property
    def position(self) -> np.ndarray: ...

    @property
    def tokens(self) -> np.ndarray: ...

    @property
    def weight(self) -> np.ndarray: ...


def write_shard(path: Path, rows: Sequence[StoredRow], layers: Sequence[int], dtype: str | None = None) -> None:
    """Write one shard of the raw tier atomically; `dtype` None keeps the rows' own format.

    The first token of a row is an attention sink and never supervised: it has no say in the scale. Raises ValueError for a value
    outside the format anywhere else.
    """
    columns: dict[str, list[Any]] = {
        "byte_start": [row.byte_start for row in rows],
        "byte_end": [row.byte_end for row in rows],
        "importance": [row.importance for row in rows],
    }
    _save(path, [row.id for row in rows], [row.kv for row in rows], columns, layers, dtype, 1, likelihoods(rows))


def write_mapped(path: Path, rows: Iterable[tuple[str, np.ndarray, Tensor]], dtype: str) -> None:
    """Write one shard of the mapped tier atomically.

    `rows`: id, student tokens `position [n]` and the targets there `[n, student_layers, 2, student_width]`, as from `mapped_rows`.
    """
    ids, positions, kvs = (list(column) for column in zip(*rows, strict=True))
    layers = range(kvs[0].shape[1])
    _save(path, ids, kvs, {"position": [position.astype(np.int32) for position in positions]}, layers, dtype, 0, None)


def mapped_rows(
    store: "KVStore", matches: Iterable[tuple[str, TimeMatch]], target: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, np.ndarray, Float[Tensor, "n student_layers 2 student_width"]]]:
    """Rows of the mapped tier: target(Σ_k weight·kv), where `target` gets every stored layer `[n, layers, 2, teacher_width]`."""
    for row, match in matches:
        used = np.where(match.weight > 0, match.tokens, 0)
        kv = store.read(row, used.ravel()).float().unflatten(0, used.shape)
        weight = torch.from_numpy(match.weight).float()
        yield row, match.position, target(torch.einsum("nk,nklcw->nlcw", weight, kv))


def likelihoods(rows: Sequence[StoredRow]) -> Float[Tensor, " rows"]:
    """The rows' likelihoods as they are stored."""
    return torch.tensor([row.likelihood for row in rows], dtype=torch.float32)


def _save(
    path: Path,
    ids: list[str],
    kvs: list[Tensor],
    columns: dict[str, list[Any]],
    layers: Sequence[int],
    dtype: str | None,
    sinks: int,
    likelihood: Tensor | None,
) -> None:
    dtype = dtype or str(kvs[0].dtype).removeprefix("torch.")
    lengths = [len(kv) for kv in kvs]
    scale = channel_scale((kv[sinks:] for kv in kvs), dtype)
    packed = torch.empty(sum(lengths), *kvs[0].shape[1:], dtype=STORED_DTYPES[dtype])
    for row, kv, part in zip(ids, kvs, packed.split(lengths), strict=True):
        part.copy_(quantize(kv, scale, dtype))
        if not (kv if scale is not None else part)[sinks:].isfinite().all():
            raise ValueError(f"{path}: row {row} has values that {dtype} cannot hold; choose bfloat16 or float32")
        if scale is None:
            part[:sinks].nan_to_num_()
    tensors = {"kv": packed}
    tensors |= {
        name: torch.cat([torch.as_tensor(value) for value in values])
        for name, values in columns.items()
        if all(value is not None for value in values)
    }
    tensors |= {"scale": scale} if scale is not None else {}
    tensors |= {"likelihood": likelihood} if likelihood is not None else {}
    # One entry: safetensors writes several in random order, and the same rows would not give the same bytes.
    metadata = {"rows": json.dumps({"layers": list(layers), "ids": ids, "lengths": lengths})}
    for stale in path.parent.glob(f".{path.name}.*.tmp"):  # what a killed job left; a shard has one writer
        stale.unlink()
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())


def write_index(shards: Sequence[Path], path: Path) -> dict[str, int]:
    """Write `index.parquet` (id, shard, start, length, likelihood, sha256) over complete shards; returns rows, tokens, bytes.

    Raises ValueError when a row is in two shards, a shard is damaged or shards differ in layers, width or format.
    """
    frames, forms = [], {}
    for shard in shards:
        opened = _Shard(shard)
        forms[shard.name] = (opened.layers, opened.kv.shape[1:], opened.kv.dtype)
        if forms[shard.name] != forms[shards[0].name]:
            raise ValueError(f"{shard}: layers, width or format differ from {shards[0].name}; {REDO}")
        frames.append(
            pd.DataFrame(
                {
                    "id": opened.ids,
                    "shard": shard.name,
                    "start": np.cumsum(opened.lengths) - opened.lengths,
                    "length": opened.lengths,
                    "likelihood": opened.columns.get("likelihood", np.full(len(opened.ids), np.nan)),
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


class _Shard:
    """One memory-mapped file: a tensor's pages are read from disk when they are used, and can be dropped again."""

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                rows = json.loads(file.metadata()["rows"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: missing or damaged ({error}); {REDO}") from error
        self.path = path
        self.ids: list[str] = rows["ids"]
        self.layers: list[int] = rows["layers"]
        self.lengths = np.array(rows["lengths"], dtype=np.int64)
        self.kv = tensors.pop("kv")
        self.scale = tensors.pop("scale", None)
        self.columns = {name: tensor.numpy() for name, tensor in tensors.items()}
        with open(path, "rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
            self.offset = 8 + header + json.loads(raw.read(header))["kv"]["data_offsets"][0]

    def will_need(self, spans: Iterable[tuple[int, int]]) -> None:
        """Ask the kernel to read these (start, length) tokens ahead, without waiting; nothing where it cannot be asked."""
        if not hasattr(os, "posix_fadvise"):
            return
        stride = self.kv[:1].nbytes
        file = os.open(self.path, os.O_RDONLY)
        try:
            for start, length in spans:
                os.posix_fadvise(file, self.offset + start * stride, length * stride, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)


class _Store:
    """Read access to the shards of one folder. `layers`: the layers stored, ascending; `width`: kv_heads·head_dim."""

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        """Open the store; with `verify`, recompute every checksum. Raises ValueError naming a damaged shard and the fix."""
        self.folder = folder
        index = pd.read_parquet(folder / "index.parquet")
        self._shards: list[_Shard] = []
        self._rows: dict[str, tuple[int, int, int]] = {}
        for number, (name, rows) in enumerate(index.groupby("shard", sort=True)):
            self._shards.append(_Shard(folder / str(name)))
            if verify and file_digest(folder / str(name)) != rows["sha256"].iloc[0]:
                raise ValueError(f"{folder / str(name)}: its sha256 differs from index.parquet; {REDO}")
            places = zip(rows["id"], rows["start"], rows["length"], strict=True)
            self._rows.update({row: (number, int(start), int(length)) for row, start, length in places})
        self._likelihood = dict(zip(index["id"], index["likelihood"], strict=True))
        self.layers = self._shards[0].layers
        self.width = int(self._shards[0].kv.shape[-1])

    def __contains__(self, row: str) -> bool:
        return row in self._rows

    def prefetch(self, rows: Iterable[str]) -> None:
        """Start reading the KV of `rows` from disk; returns at once. For the rows of the next batches."""
        spans: dict[int, list[tuple[int, int]]] = {}
        for row in rows:
            shard, start, length = self._rows[row]
            spans.setdefault(shard, []).append((start, length))
        for shard, wanted in spans.items():
            self._shards[shard].will_need(wanted)

    def _column(self, name: str, row: str) -> np.ndarray:
        shard, start, length = self._rows[row]
        if name not in self._shards[shard].columns:
            raise ValueError(f"{self.folder}: its rows were stored without {name}")
        return self._shards[shard].columns[name][start : start + length]

    def _kv(self, row: str, tokens: np.ndarray | slice) -> Tensor:
        number, start, length = self._rows[row]
        shard = self._shards[number]
        picked = shard.kv[start : start + length][tokens if isinstance(tokens, slice) else torch.from_numpy(tokens)]
        return dequantize(picked, shard.scale)


class KVStore(_Store):
    """One teacher's KV, tier `raw`."""

    def byte_start(self, row: str) -> Int[np.ndarray, " time"]:
        """First byte of the teacher's tokens of one row, −1 where they cannot be compared."""
        return self._column("byte_start", row)

    def byte_end(self, row: str) -> Int[np.ndarray, " time"]:
        """Byte after the teacher's tokens of one row, −1 where they cannot be compared."""
        return self._column("byte_end", row)

    def importance(self, row: str) -> Float[np.ndarray, "time layers"]:
        """Attention that each token of one row gets from the row's target tokens."""
        return self._column("importance", row)

    def likelihood(self, row: str) -> float:
        """The teacher's mean log-probability (nats) of the row's target tokens; NaN for a model without a head."""
        return float(self._likelihood[row])

    def read(self, row: str, tokens: Int[np.ndarray, " picked"]) -> Float[Tensor, "picked layers 2 width"]:
        """KV of the given tokens of one row: in the store's format, float32 where it is quantised.

        Raises IndexError for a token outside the row.
        """
        length = self._rows[row][2]
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
