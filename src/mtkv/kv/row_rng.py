"""Random numbers that belong to a row, not to a call: the same row gets the same draws in every batch, order and device."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15 - (1 << 64)  # splitmix64's odd constants, as signed 64-bit integers
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
_BITS = 53


def row_uniforms(seeds: Int[Tensor, " rows"], shape: tuple[int, ...]) -> Float[Tensor, "rows ..."]:
    """Uniform draws in (0, 1) `[rows, *shape]`, float64: draw n of a row is a hash of (seed, n), as in a counter-based generator.

    Source: splitmix64 (Steele, Lea and Flood, OOPSLA 2014). A row's leading draws do not depend on how many are asked for.
    """
    count = int(torch.Size(shape).numel())
    counter = torch.arange(1, count + 1, device=seeds.device)
    state = _mixed(seeds.long()[:, None] + _STEP) + counter * _STEP
    bits = _shifted(_mixed(state), 64 - _BITS)
    return ((bits.double() + 0.5) / 2**_BITS).clamp_max(1 - 2**-_BITS).reshape(len(seeds), *shape)


def _mixed(x: Tensor) -> Tensor:
    for shift, factor in _MIX:
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit integers (torch's own keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
