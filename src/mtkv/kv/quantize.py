"""Number formats of the KV store: three plain ones, and int8 or float8 with one scale for each channel.

Quantised x is round(x / scale), symmetric around zero, with scale = max |x| / largest code over one shard, for each layer ×
{K, V} × channel, because the outliers of keys sit in fixed channels (KIVI, arXiv 2402.02750, §3). Values beyond the scale are
clipped: only attention sinks are, which are left out when the scale is taken.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mtkv.models.load import DTYPES

LARGEST_CODE = {"int8": 127.0, "float8_e4m3fn": 448.0}
STORED_DTYPES = DTYPES | {"int8": torch.int8, "float8_e4m3fn": torch.float8_e4m3fn}


def channel_scale(
    parts: Iterable[Float[Tensor, "tokens layers 2 width"]], dtype: str
) -> Float[Tensor, "layers 2 width"] | None:
    """Scale of each channel over all tokens of `parts`; 1 for a channel that is always zero. None for a plain format."""
    if dtype not in LARGEST_CODE:
        return None
    largest: Tensor | None = None
    for part in parts:
        here = part.float().abs().amax(0) if len(part) else torch.zeros(part.shape[1:])
        largest = here if largest is None else torch.maximum(largest, here)
    if largest is None:
        raise ValueError("a scale needs at least one row")
    scale = largest / LARGEST_CODE[dtype]
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def quantize(
    x: Float[Tensor, "tokens layers 2 width"], scale: Float[Tensor, "layers 2 width"] | None, dtype: str
) -> Shaped[Tensor, "tokens layers 2 width"]:
    """`x` in the format `dtype` of the store. |error| ≤ scale/2 (int8) or ≤ 2⁻⁴·|x| + 2⁻¹⁰·scale (float8) where nothing is clipped."""
    if scale is None:
        return x.to(STORED_DTYPES[dtype])
    largest = LARGEST_CODE[dtype]
    codes = (x.float() / scale).clamp(-largest, largest)
    return (codes.round() if dtype == "int8" else codes).to(STORED_DTYPES[dtype])


def dequantize(
    codes: Shaped[Tensor, "tokens layers 2 width"], scale: Float[Tensor, "layers 2 width"] | None
) -> Float[Tensor, "tokens layers 2 width"]:
    """What `quantize` stored: float32 when there is a scale, otherwise the plain format as it is."""
    return codes if scale is None else codes.float() * scale
