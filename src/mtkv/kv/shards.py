"""One file of the KV store: rows of a teacher's keys and values, written at once, read memory-mapped.

Rows lie one after the other in `kv [tokens, layers, 2, width]` (keys at index 0, values at 1; width = kv_heads·head_dim). The
quantised formats have `scale` and `offset [layers, 2, width]`, and int4 has two channels in each byte of `kv`. The other tensors are
columns with one entry per token, or per row for its statistics. The file is a safetensors file; its metadata holds layers, ids and
lengths of rows.

There are three plain number formats, and int4, int8 or float8 with a scale and an offset for each channel: quantised x is offset +
scale·code, for each layer × {K, V} × channel over one shard, because the outliers of keys sit in fixed channels (KIVI, arXiv 2402.02750,
section 3). The offset is the channel's mean: a key bias puts whole channels far from zero, and codes around zero would spend their range
on it. The scale covers max |x − offset|; int4 stops at 2.5 standard deviations, near the least squared error of 15 levels for a normal
channel. What lies beyond is clipped, attention sinks too: they are left out of both numbers.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mtkv.models.load import DTYPES
from mtkv.provenance.files import atomic_path

LARGEST_CODE = {"int4": 7.0, "int8": 127.0, "float8_e4m3fn": 448.0}
CLIP_STD = {"int4": 2.5}
STORED_DTYPES = DTYPES | {"int4": torch.uint8, "int8": torch.int8, "float8_e4m3fn": torch.float8_e4m3fn}


class Grid(NamedTuple):
    """Where the codes of each channel lie: x = offset + scale·code."""

    scale: Float[Tensor, "layers 2 width"]
    offset: Float[Tensor, "layers 2 width"]


def channel_grid(parts: Sequence[Float[Tensor, "tokens layers 2 width"]], dtype: str) -> Grid | None:
    """Scale and offset of each channel, over all tokens of `parts`; scale 1 for a constant channel. None for a plain format."""
    if dtype not in LARGEST_CODE:
        return None
    if not parts:
        raise ValueError("a scale needs at least one row")
    tokens = max(1, sum(len(part) for part in parts))
    offset = (torch.stack([part.sum(0, dtype=torch.float64) for part in parts]).sum(0) / tokens).float()
    largest, square = torch.zeros_like(offset), torch.zeros_like(offset, dtype=torch.float64)
    for part in parts:
        if len(part):
            centred = part.float() - offset
            largest = torch.maximum(largest, centred.abs().amax(0))
            square += centred.double().square().sum(0)
    if dtype in CLIP_STD:
        largest = torch.minimum(largest, CLIP_STD[dtype] * (square / tokens).sqrt().float())
    scale = largest / LARGEST_CODE[dtype]
    return Grid(torch.where(scale >= torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale)), offset)


def quantize(
    x: Float[Tensor, "tokens layers 2 width"], grid: Grid | None, dtype: str
) -> Shaped[Tensor, "tokens layers 2 stored_width"]:
    """`x` in the format `dtype` of the store; stored_width is ⌈width/2⌉ for int4.

    Where nothing is clipped, |error| ≤ scale/2 (int4, int8) or ≤ 2⁻⁴·|x − offset| + 2⁻¹⁰·scale (float8), and float32's rounding of x.
    """
    if grid is None:
        return x.to(STORED_DTYPES[dtype])
    largest = LARGEST_CODE[dtype]
    codes = ((x.float() - grid.offset) / grid.scale).nan_to_num_().clamp_(-largest, largest)
    return ENCODE[dtype](codes)


def dequantize(
    codes: Shaped[Tensor, "tokens layers 2 stored_width"], grid: Grid | None
) -> Float[Tensor, "tokens layers 2 width"]:
    """What `quantize` stored: float32 when there is a grid, otherwise the plain format as it is."""
    if grid is None:
        return codes
    whole = unpack(codes, grid.scale.shape[-1]) if codes.dtype == STORED_DTYPES["int4"] else codes
    return whole.to(torch.float32, copy=True).mul_(grid.scale).add_(grid.offset)


def stored_width(width: int, dtype: str) -> int:
    """Numbers that are stored for `width` channels in the format `dtype`: ⌈width/2⌉ bytes for int4, else `width`."""
    return -(-width // 2) if dtype == "int4" else width


def pack(codes: Float[Tensor, "*axes width"]) -> UInt8[Tensor, "*axes half"]:
    """Codes −7 … 7, rounded, two in a byte: channel 2j in the low four bits of byte j, 2j + 1 in the high ones, each plus 8.

    The last byte of an odd width has code 0 in its high bits.
    """
    whole = (codes.round() + 8).to(torch.uint8)
    even, odd = whole[..., ::2], whole[..., 1::2]
    if even.shape[-1] > odd.shape[-1]:
        odd = torch.cat([odd, odd.new_full((*odd.shape[:-1], 1), 8)], dim=-1)
    return even | odd << 4


def unpack(packed: UInt8[Tensor, "*axes half"], width: int) -> Shaped[Tensor, "*axes {width}"]:
    """The codes that `pack` put into bytes, int8."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., :width].to(torch.int8) - 8


ENCODE: dict[str, Callable[[Tensor], Tensor]] = {
    "int4": pack,
    "int8": lambda codes: codes.round().to(torch.int8),
    "float8_e4m3fn": lambda codes: codes.to(torch.float8_e4m3fn),
}


KEY, VALUE = 0, 1
REDO = "delete it and run the extraction again: only this shard is made anew"


@dataclass(frozen=True)
class StoredRow:
    """One row of the raw tier before it is packed: `kv [time, layers, 2, width]`, `byte_start`, `byte_end [time]`.

    `statistics`: what of `ROW_STATISTICS` was noted of the row, the same names for all rows of a shard. `importance
    [time, layers, kv_heads]`: attention that each token gets from the answer's.
    """

    id: str
    kv: Tensor
    byte_end: np.ndarray
    byte_start: np.ndarray | None = None
    statistics: Mapping[str, float] = field(default_factory=dict)
    importance: Tensor | None = None


def write_shard(path: Path, rows: Sequence[StoredRow], layers: Sequence[int], dtype: str | None = None) -> None:
    """Write one shard of the raw tier atomically; `dtype` None keeps the rows' own format.

    The first token of a row is an attention sink and never supervised, so it does not count in the quantisation grid. Raises ValueError
    for a value in any other token that the format cannot hold.
    """
    columns: dict[str, list[Any]] = {
        "byte_start": [row.byte_start for row in rows],
        "byte_end": [row.byte_end for row in rows],
        "importance": [row.importance for row in rows],
    }
    columns |= {
        name: [torch.tensor([row.statistics[name] for row in rows], dtype=torch.float32)] for name in rows[0].statistics
    }
    _save(path, [row.id for row in rows], [row.kv for row in rows], columns, layers, dtype, 1)


def write_mapped(path: Path, rows: Iterable[tuple[str, np.ndarray, Tensor]], dtype: str) -> None:
    """Write one shard of the mapped tier atomically.

    `rows`: id, student tokens `position [n]` and the targets there `[n, student_layers, 2, student_width]`, as from `mapped_rows`.
    """
    ids, positions, kvs = (list(column) for column in zip(*rows, strict=True))
    layers = range(kvs[0].shape[1])
    _save(path, ids, kvs, {"position": [position.astype(np.int32) for position in positions]}, layers, dtype, 0)


def _save(
    path: Path,
    ids: list[str],
    kvs: list[Tensor],
    columns: dict[str, list[Any]],
    layers: Sequence[int],
    dtype: str | None,
    sinks: int,
) -> None:
    dtype = dtype or str(kvs[0].dtype).removeprefix("torch.")
    lengths = [len(kv) for kv in kvs]
    grid = channel_grid([kv[sinks:] for kv in kvs], dtype)
    *shape, width = kvs[0].shape[1:]
    packed = torch.empty(sum(lengths), *shape, stored_width(width, dtype), dtype=STORED_DTYPES[dtype])
    for row, kv, part in zip(ids, kvs, packed.split(lengths), strict=True):
        part.copy_(quantize(kv, grid, dtype))
        if not (kv if grid is not None else part)[sinks:].isfinite().all():
            raise ValueError(f"{path}: row {row} has values that {dtype} cannot hold; choose bfloat16 or float32")
        if grid is None:
            part[:sinks].nan_to_num_()
    tensors = {"kv": packed}
    tensors |= {
        name: torch.cat([torch.as_tensor(value) for value in values])
        for name, values in columns.items()
        if all(value is not None for value in values)
    }
    tensors |= grid._asdict() if grid is not None else {}
    # One metadata entry: safetensors writes several in random order, and equal rows would not give equal files.
    metadata = {"rows": json.dumps({"layers": list(layers), "ids": ids, "lengths": lengths})}
    for stale in path.parent.glob(f".{path.name}.*.tmp"):  # what a killed job left; a shard has one writer
        stale.unlink()
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())


class Shard:
    """One memory-mapped file: a tensor's pages are read from disk when they are used, and can be dropped again."""

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                rows = json.loads(file.metadata()["rows"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: missing or damaged ({error}); {REDO}") from error
        self.path = path
        self.layers: list[int] = rows["layers"]
        self.lengths = np.array(rows["lengths"], dtype=np.int64)
        self.kv = tensors.pop("kv")
        scale, offset = tensors.pop("scale", None), tensors.pop("offset", None)
        self.grid = None if scale is None else Grid(scale, torch.zeros_like(scale) if offset is None else offset)
        self.width = int((self.kv if scale is None else scale).shape[-1])
        self.columns = {name: tensor.numpy() for name, tensor in tensors.items()}
        with open(path, "rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
            self.offset = 8 + header + json.loads(raw.read(header))["kv"]["data_offsets"][0]

    @property
    def ids(self) -> list[str]:
        """Ids of the shard's rows, read from the file each time, so that a store that stays open does not hold them in memory."""
        with safe_open(self.path, "pt") as file:
            ids: list[str] = json.loads(file.metadata()["rows"])["ids"]
        return ids

    def read(self, start: int, length: int, tokens: np.ndarray | slice) -> Float[Tensor, "picked layers 2 width"]:
        """KV of the given tokens of the row at (start, length), float32 where quantised; only their pages of the file are read."""
        picked = self.kv[start : start + length][tokens if isinstance(tokens, slice) else torch.from_numpy(tokens)]
        return dequantize(picked, self.grid)

    def will_need(self, spans: Iterable[tuple[int, int]]) -> None:
        """Ask the kernel to read the KV of these (start, length) ahead, and return at once; without posix_fadvise nothing happens."""
        if not hasattr(os, "posix_fadvise"):
            return
        stride = self.kv[:1].nbytes
        file = os.open(self.path, os.O_RDONLY)
        try:
            for start, length in spans:
                os.posix_fadvise(file, self.offset + start * stride, length * stride, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)
