"""Number formats of the KV store: three plain ones, and int4, int8 or float8 with a scale and an offset for each channel.

Quantised x is offset + scale·code, for each layer × {K, V} × channel over one shard, because the outliers of keys sit in fixed
channels (KIVI, arXiv 2402.02750, section 3). The offset is the channel's mean: a key bias puts whole channels far from zero, and codes
around zero would spend their range on it. The scale covers max |x − offset|; int4 stops at 2.5 standard deviations, near the least
squared error of 15 levels for a normal channel. What lies beyond is clipped, attention sinks too: they are left out of both numbers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from mtkv.models.load import DTYPES

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
