"""The ridge map against scikit-learn, against planted maps, and under permuted heads."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from mtkv.align.maps import KVMap, fit_map, relative_error, ridge


def planted(tokens=400, layers=2, teacher=12, student=6, noise=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, layers, 2, teacher, generator=generator) * 3 + 1
    weight = torch.randn(layers, 2, teacher, student, generator=generator)
    y = torch.einsum("nlki,lkio->nlko", x, weight) + 5
    return x, y + noise * torch.randn(y.shape, generator=generator), weight


def test_ridge_equals_scikit_learn():
    x, y, _ = planted(noise=1.0)
    x, y = (v[:, 0, 0].double() - v[:, 0, 0].double().mean(0) for v in (x, y))
    strength = 0.3
    penalty = strength * float(np.trace(x.T.numpy() @ x.numpy())) / x.shape[1]
    want = Ridge(alpha=penalty, fit_intercept=False).fit(x.numpy(), y.numpy()).coef_.T
    np.testing.assert_allclose(ridge(x, y, strength).numpy(), want, rtol=1e-9, atol=1e-9)


def test_a_planted_linear_map_is_recovered():
    x, y, weight = planted()
    fitted = fit_map(x, y, [0, 4], "ridge", 1e-9)
    torch.testing.assert_close(fitted.weight, weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fitted.target(x) * fitted.scale[..., None] + fitted.y_mean, y, atol=1e-3, rtol=1e-4)


def test_targets_have_mean_zero_and_unit_scale_per_layer_and_kind():
    x, y, _ = planted(noise=2.0)
    target = fit_map(x, y, [0, 4], "ridge", 1e-3).target(x)
    torch.testing.assert_close(target.mean(0), torch.zeros_like(target[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.square().mean((0, 3)), torch.ones(2, 2), atol=1e-4, rtol=1e-4)


def test_permuting_the_teachers_heads_changes_no_target():
    x, y, _ = planted(noise=1.0)
    heads = x.unflatten(-1, (3, 4))[..., [2, 0, 1], :].flatten(-2)
    plain, permuted = (fit_map(v, y, [0, 4], "ridge", 1e-3).target(v) for v in (x, heads))
    torch.testing.assert_close(plain, permuted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("teacher", "student"), [(12, 8), (4, 8), (28, 4), (8, 32), (12, 2)])
def test_any_widths(teacher, student):
    x, y, _ = planted(teacher=teacher, student=student)
    assert fit_map(x, y, [0, 1], "ridge", 1e-6).target(x).shape == (400, 2, 2, student)


def test_too_few_tokens_are_refused():
    x, y, _ = planted(tokens=12)
    with pytest.raises(ValueError, match="calibration_rows"):
        fit_map(x, y, [0, 1], "ridge", 1e-3)


def test_save_and_load(tmp_path):
    x, y, _ = planted()
    fitted = fit_map(x, y, [0, 4], "ridge", 1e-3)
    fitted.save(tmp_path / "map.safetensors")
    assert torch.equal(KVMap.load(tmp_path / "map.safetensors").target(x), fitted.target(x))


def test_relative_error_is_one_for_the_mean_and_zero_for_the_truth():
    y = torch.randn(50, 4)
    assert relative_error(y, y, y.mean(0)) == 0
    assert relative_error(y.mean(0).expand_as(y), y, y.mean(0)) == pytest.approx(1)
