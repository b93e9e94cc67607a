"""Components against numpy's singular values: what they keep, what they lose, and that the order is that of the variance."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mtkv.align.closed_form_maps import fit_map
from mtkv.align.components import Components

TOKENS, LAYERS, WIDTH = 400, 2, 12


@pytest.fixture(scope="module")
def teacher():
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(3, 0.1, WIDTH)
    turn = torch.randn(LAYERS, 2, WIDTH, WIDTH, generator=generator)
    return (
        torch.einsum("nlki,lkij->nlkj", torch.randn(TOKENS, LAYERS, 2, WIDTH, generator=generator) * spread, turn) + 5
    )


@pytest.fixture(scope="module")
def kv_map(teacher):
    return fit_map(teacher, teacher[..., :4], [0, 1], "ridge", 1e-3)


@pytest.mark.parametrize("width", [1, 5, WIDTH, 50])
def test_the_loss_is_the_variance_of_the_smallest_singular_values(teacher, kv_map, width):
    components = Components.fit(teacher, kv_map, width)
    coordinates = components.encode(teacher)
    assert coordinates.shape == (TOKENS, LAYERS, 2, min(width, WIDTH))
    lost = (components.decode(coordinates) - teacher) / components.deviation
    for layer in range(LAYERS):
        for kind in range(2):
            x = teacher[:, layer, kind].double().numpy()
            singular = np.linalg.svd((x - x.mean(0)) / x.std(0), compute_uv=False)
            assert float(lost[:, layer, kind].square().sum()) == pytest.approx(
                (singular[width:] ** 2).sum(), rel=1e-3, abs=1e-2
            )
            assert (
                coordinates[:, layer, kind].std(0).tolist() == sorted(coordinates[:, layer, kind].std(0).tolist())[::-1]
            )


def test_saved_and_loaded_and_still_channels(teacher, kv_map, tmp_path):
    flat = replace(
        kv_map, x_channel_std=torch.zeros_like(kv_map.x_channel_std)
    )  # channels that never moved on the calibration rows
    for fitted in (kv_map, flat):
        components = Components.fit(teacher, fitted, 3)
        components.save(tmp_path)
        again = Components.load(tmp_path)
        assert torch.equal(again.encode(teacher), components.encode(teacher))
        assert bool(again.encode(teacher).isfinite().all())
