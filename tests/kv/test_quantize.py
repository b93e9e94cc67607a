"""Quantised formats: the round trip against numpy and the error bounds that the docstring promises, channel by channel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mtkv.kv.shards import LARGEST_CODE, STORED_DTYPES, channel_grid, dequantize, pack, quantize, stored_width, unpack

PLAIN = ("float32", "float16", "bfloat16")
TINY = np.finfo(np.float32).tiny
VALUES = arrays(np.float32, (6, 2, 2, 3), elements=st.floats(-1e4, 1e4, width=32))


def outliers(tokens=200):
    """Channels whose sizes span six orders of magnitude, as those of keys do."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tokens, 3, 2, 8, generator=generator) * torch.logspace(-3, 3, 8)


def round_trip(x, dtype):
    grid = channel_grid([torch.as_tensor(x)], dtype)
    return dequantize(quantize(torch.as_tensor(x), grid, dtype), grid).numpy()


def rounding(x):
    """What float32 may lose when the offset is taken off and put back."""
    return np.abs(x).max(0) * 2.0**-21


@settings(max_examples=60, deadline=None)
@given(VALUES, st.sampled_from(["int8", "int4"]))
def test_integers_equal_numpy_and_keep_their_bound_in_every_channel(x, dtype):
    grid = channel_grid([torch.from_numpy(x[:2]), torch.from_numpy(x[2:])], dtype)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(grid.offset.numpy(), wide.mean(0), rtol=1e-6, atol=TINY)
    reach = np.abs(wide - grid.offset.numpy()).max(0)
    if dtype == "int4":
        reach = np.minimum(reach, 2.5 * np.sqrt(((wide - grid.offset.numpy()) ** 2).mean(0)))
    sure = reach / LARGEST_CODE[dtype] > 1.01 * TINY
    np.testing.assert_allclose(grid.scale.numpy()[sure], (reach / LARGEST_CODE[dtype])[sure], rtol=1e-4)
    assert (grid.scale.numpy()[reach == 0] == 1).all()
    codes = quantize(torch.from_numpy(x), grid, dtype)
    assert codes.dtype == STORED_DTYPES[dtype]
    back = dequantize(codes, grid).numpy()
    near = np.clip(wide, grid.offset.numpy() - reach, grid.offset.numpy() + reach)
    assert (np.abs(back - near) <= grid.scale.numpy() * 0.5 * (1 + 1e-4) + rounding(x)).all()


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_float8_keeps_its_bound_for_every_value(x):
    grid = channel_grid([torch.from_numpy(x)], "float8_e4m3fn")
    back = dequantize(quantize(torch.from_numpy(x), grid, "float8_e4m3fn"), grid).numpy()
    away = np.abs(x.astype(np.float64) - grid.offset.numpy())
    assert (np.abs(back - x) <= (away * 2.0**-4 + grid.scale.numpy() * 2.0**-10) * (1 + 1e-4) + rounding(x)).all()


@settings(max_examples=60, deadline=None)
@given(arrays(np.int8, st.tuples(st.integers(0, 4), st.integers(1, 9)), elements=st.integers(-7, 7)))
def test_packing_puts_even_channels_into_the_low_bits(codes):
    width = codes.shape[-1]
    packed = pack(torch.from_numpy(codes).float())
    assert packed.shape[-1] == stored_width(width, "int4") == (width + 1) // 2
    for row, stored in zip(codes.tolist(), packed.tolist(), strict=True):
        digits = "".join(f"{byte:02x}"[::-1] for byte in stored)  # low digit first
        assert [int(digit, 16) - 8 for digit in digits] == row + [0] * (width % 2)
    assert unpack(packed, width).tolist() == codes.tolist()


@pytest.mark.parametrize("dtype", sorted(LARGEST_CODE))
def test_small_channels_keep_their_precision_beside_large_ones(dtype):
    x = outliers()
    back = torch.from_numpy(round_trip(x, dtype))
    relative = ((back - x).square().mean(0) / x.square().mean(0)).sqrt()
    assert relative.max() < (0.18 if dtype == "int4" else 0.04)
    assert relative.max() / relative.min() < 3


def test_int4_clips_near_the_least_squared_error_of_normal_channels():
    """15 levels of a standard normal cost 0.0130 at best (grid search over symmetric steps, in numpy)."""
    x = np.random.default_rng(0).normal(size=(20000, 1, 2, 4)).astype(np.float32)
    costs = [np.square(np.clip(np.rint(x / step), -7, 7) * step - x).mean() for step in np.arange(0.25, 0.5, 0.01)]
    assert np.square(round_trip(x, "int4") - x).mean() < 1.02 * min(costs)


@pytest.mark.parametrize("dtype", sorted(LARGEST_CODE))
def test_a_value_beyond_the_grid_is_clipped_not_wrapped(dtype):
    x = outliers()
    grid = channel_grid([x[1:]], dtype)
    for sink in (1e9, torch.inf):
        back = dequantize(
            quantize(torch.full((1, *x.shape[1:]), sink) * torch.tensor([1, -1])[:, None, None, None], grid, dtype),
            grid,
        )
        torch.testing.assert_close(back[0], grid.offset + grid.scale * LARGEST_CODE[dtype])
        torch.testing.assert_close(back[1], grid.offset - grid.scale * LARGEST_CODE[dtype])
    hollow = dequantize(quantize(torch.full((1, *x.shape[1:]), torch.nan), grid, dtype), grid)
    torch.testing.assert_close(hollow[0], grid.offset)


def cosine(x, y):
    x, y = x.ravel().astype(np.float64), y.ravel().astype(np.float64)
    return x @ y / np.sqrt((x @ x) * (y @ y))


def test_keys_far_from_zero_keep_the_gradient():
    """Teacher keys 100 standard deviations from zero, a linear map to the student's width and the gradient of its squared error.

    The lower bounds are for the store; codes around zero (the same formula without the offset, in numpy) miss them.
    """
    rng = np.random.default_rng(0)
    std = 10 ** rng.uniform(-2, 2, 16)
    bias = 100 * std * rng.choice([-1, 1], 16)
    x = ((rng.normal(size=(400, 16)) * std) + bias).astype(np.float32)
    mapping = rng.normal(size=(16, 6)) / std[:, None]
    student, hidden = rng.normal(size=(400, 6)), rng.normal(size=(400, 5))

    def target(keys):
        return (keys.astype(np.float64) - x.astype(np.float64).mean(0)) @ mapping

    def gradients(keys):
        """Of ½·|student − target|² on the student's KV and on the weights that make it from `hidden`."""
        return student - target(keys), hidden.T @ (student - target(keys))

    def worst(keys):
        pairs = zip((target(keys), *gradients(keys)), (target(x), *gradients(x)), strict=True)
        return min(cosine(found, want) for found, want in pairs)

    scale = np.abs(x).max(0) / 127
    assert worst(np.rint(x / scale) * scale) < 0.98
    assert worst(round_trip(x.reshape(400, 1, 2, 8), "int8").reshape(400, 16)) > 0.9998
    assert worst(round_trip(x.reshape(400, 1, 2, 8), "float8_e4m3fn").reshape(400, 16)) > 0.998
    assert worst(round_trip(x.reshape(400, 1, 2, 8), "int4").reshape(400, 16)) > 0.985


@pytest.mark.parametrize("dtype", PLAIN)
def test_plain_formats_are_a_cast(dtype):
    x = outliers()
    assert channel_grid([x], dtype) is None
    assert stored_width(7, dtype) == 7
    assert torch.equal(dequantize(quantize(x, None, dtype), None), x.to(STORED_DTYPES[dtype]))


@pytest.mark.parametrize("dtype", sorted(LARGEST_CODE))
def test_constant_channels_come_back_whole(dtype):
    x = np.full((5, 1, 2, 3), 1234.567, dtype=np.float32)
    assert np.array_equal(round_trip(x, dtype), x)


def test_a_grid_of_nothing():
    with pytest.raises(ValueError, match="at least one row"):
        channel_grid([], "int8")
    for dtype in LARGEST_CODE:
        grid = channel_grid([torch.zeros(0, 1, 2, 3)], dtype)
        assert torch.equal(grid.scale, torch.ones(1, 2, 3))
        assert torch.equal(grid.offset, torch.zeros(1, 2, 3))
        assert dequantize(quantize(torch.zeros(0, 1, 2, 3), grid, dtype), grid).shape == (0, 1, 2, 3)
