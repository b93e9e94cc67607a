"""Quantised formats: the round trip against numpy and the error bounds that the docstring promises, channel by channel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mtkv.kv.quantize import LARGEST_CODE, STORED_DTYPES, channel_scale, dequantize, quantize

PLAIN = ("float32", "float16", "bfloat16")
VALUES = arrays(np.float32, (6, 2, 2, 3), elements=st.floats(-1e4, 1e4, width=32))


def outliers(tokens=200):
    """Channels whose sizes span six orders of magnitude, as those of keys do."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tokens, 3, 2, 8, generator=generator) * torch.logspace(-3, 3, 8)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_int8_equals_numpy_and_keeps_its_bound_in_every_channel(x):
    scale = channel_scale([torch.from_numpy(x[:2]), torch.from_numpy(x[2:])], "int8")
    largest = np.abs(x).max(0)
    np.testing.assert_allclose(scale.numpy(), np.where(largest / np.float32(127) > 0, largest / np.float32(127), 1.0))
    codes = quantize(torch.from_numpy(x), scale, "int8")
    assert codes.dtype == torch.int8
    assert np.array_equal(codes.numpy(), np.clip(np.rint(x / scale.numpy()), -127, 127).astype(np.int8))
    error = np.abs(dequantize(codes, scale).numpy() - x).max(0)
    assert (error <= scale.numpy() * 0.5 * (1 + 1e-4)).all()


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_float8_keeps_its_bound_for_every_value(x):
    scale = channel_scale([torch.from_numpy(x)], "float8_e4m3fn")
    back = dequantize(quantize(torch.from_numpy(x), scale, "float8_e4m3fn"), scale).numpy()
    assert (np.abs(back - x) <= (np.abs(x) * 2.0**-4 + scale.numpy() * 2.0**-10) * (1 + 1e-4)).all()


@pytest.mark.parametrize("dtype", sorted(LARGEST_CODE))
def test_small_channels_keep_their_precision_beside_large_ones(dtype):
    x = outliers()
    scale = channel_scale([x], dtype)
    back = dequantize(quantize(x, scale, dtype), scale)
    relative = ((back - x).square().mean(0) / x.square().mean(0)).sqrt()
    assert relative.max() < 0.04
    assert relative.max() / relative.min() < 3


@pytest.mark.parametrize("dtype", sorted(LARGEST_CODE))
def test_a_value_beyond_the_scale_is_clipped_not_wrapped(dtype):
    x = outliers()
    scale = channel_scale([x[1:]], dtype)
    sink = torch.full_like(x[:1], 1e9)
    back = dequantize(quantize(torch.cat([sink, -sink]), scale, dtype), scale)
    torch.testing.assert_close(back[0], scale * LARGEST_CODE[dtype])
    torch.testing.assert_close(back[1], -scale * LARGEST_CODE[dtype])


@pytest.mark.parametrize("dtype", PLAIN)
def test_plain_formats_are_a_cast(dtype):
    x = outliers()
    assert channel_scale([x], dtype) is None
    assert torch.equal(dequantize(quantize(x, None, dtype), None), x.to(STORED_DTYPES[dtype]))


def test_a_scale_of_nothing():
    with pytest.raises(ValueError, match="at least one row"):
        channel_scale([], "int8")
    assert torch.equal(channel_scale([torch.zeros(0, 1, 2, 3)], "int8"), torch.ones(1, 2, 3))
