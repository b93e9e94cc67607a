"""Closed-form maps against scikit-learn and scipy, against planted maps, and under permuted heads."""

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge

from mtkv.align.closed_form_maps import MAP_FUNCTIONS, KVMap, combine_layers, fit_map, procrustes, relative_error, ridge

WEIGHTS = torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0, 0.5, 0.5]])


def planted(tokens=400, layers=2, teacher=12, student=6, noise=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, layers, 2, teacher, generator=generator) * 3 + 1
    weight = torch.randn(layers, 2, teacher, student, generator=generator)
    y = torch.einsum("nlki,lkio->nlko", x, weight) + 5
    return x, y + noise * torch.randn(y.shape, generator=generator), weight


def centred(x, y, layer=0, kind=0):
    return (v[:, layer, kind].double() - v[:, layer, kind].double().mean(0) for v in (x, y))


def test_ridge_equals_scikit_learn():
    x, y = centred(*planted(noise=1.0)[:2])
    strength = 0.3
    penalty = strength * float(np.trace(x.T.numpy() @ x.numpy())) / x.shape[1]
    want = Ridge(alpha=penalty, fit_intercept=False).fit(x.numpy(), y.numpy()).coef_.T
    np.testing.assert_allclose(ridge(x, y, strength).numpy(), want, rtol=1e-9, atol=1e-9)


def test_ridge_with_several_threads():
    """torch's batched LU solver fails here with two threads from a width of about 256 on."""
    threads = torch.get_num_threads()
    x, y = torch.randn(2, 400, 300).double(), torch.randn(2, 400, 5).double()
    expected = torch.stack([ridge(a, b, 0.1) for a, b in zip(x, y, strict=True)])
    try:
        torch.set_num_threads(2)
        found = ridge(x, y, 0.1)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found, expected)


def test_ridge_without_strength_takes_the_smallest_map_where_many_fit():
    x, y = torch.randn(12, 4).double(), torch.randn(12, 3).double()
    x = torch.cat([x, torch.zeros(12, 2).double(), x], dim=1)  # dead and doubled channels
    expected = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=1e-10)[0]
    np.testing.assert_allclose(ridge(x, y, 0.0), expected, atol=1e-8)


def test_procrustes_equals_scipy_and_has_the_best_scale():
    x, y = centred(*planted(teacher=6, noise=1.0)[:2])
    turn, _ = orthogonal_procrustes(x.numpy(), y.numpy())
    fitted = procrustes(x, y, 0.0).numpy()
    scale = np.linalg.norm(fitted[0])
    np.testing.assert_allclose(fitted / scale, turn, atol=1e-9)
    error = lambda s: np.square(s * x.numpy() @ turn - y.numpy()).sum()  # noqa: E731
    assert error(scale) < min(error(0.999 * scale), error(1.001 * scale))


@pytest.mark.parametrize(("teacher", "student"), [(12, 5), (5, 12)])
def test_procrustes_between_widths_is_semi_orthogonal(teacher, student):
    x, y = centred(*planted(teacher=teacher, student=student, noise=0.1)[:2])
    weight = procrustes(x, y, 0.0)
    small = weight.mT @ weight if teacher > student else weight @ weight.mT
    torch.testing.assert_close(small, small[0, 0] * torch.eye(len(small), dtype=small.dtype))
    assert small[0, 0] > 0


@pytest.mark.parametrize(("teacher", "student"), [(8, 8), (5, 12)])
def test_a_planted_rotation_is_recovered(teacher, student):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 2, 2, teacher, generator=generator) - 2
    square = torch.linalg.qr(torch.randn(2, 2, student, student, generator=generator))[0]
    weight = 0.7 * square[..., :teacher, :]
    y = torch.einsum("nlki,lkio->nlko", x, weight) + 3
    torch.testing.assert_close(fit_map(x, y, WEIGHTS, "procrustes", 0.0).weight, weight, atol=1e-5, rtol=1e-4)


def test_a_planted_linear_map_is_recovered():
    x, y, weight = planted()
    fitted = fit_map(x, y, WEIGHTS, "ridge", 1e-9)
    torch.testing.assert_close(fitted.weight, weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fitted.target(x) * fitted.scale[..., None] + fitted.y_mean, y, atol=1e-3, rtol=1e-4)


def test_identity_only_centres_and_scales():
    x, y, _ = planted(teacher=6)
    target = fit_map(x, y, WEIGHTS, "identity", 0.0).target(x)
    want = (x - x.mean(0)) / (x - x.mean(0)).square().mean((0, 3), keepdim=True).sqrt()
    torch.testing.assert_close(target, want, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="equal widths, the teacher has 12 channels and the student 6"):
        fit_map(*planted()[:2], WEIGHTS, "identity", 0.0)


@pytest.mark.parametrize("method", sorted(MAP_FUNCTIONS))
def test_each_layer_and_kind_is_fitted_alone(method):
    x, y, _ = planted(teacher=6, noise=1.0)
    fitted = fit_map(x, y, WEIGHTS, method, 0.1).weight
    for layer in range(2):
        for kind in range(2):
            alone = MAP_FUNCTIONS[method](*centred(x, y, layer, kind), 0.1)
            torch.testing.assert_close(fitted[layer, kind], alone.float())


@pytest.mark.parametrize("method", sorted(MAP_FUNCTIONS))
def test_targets_have_mean_zero_and_unit_scale_per_layer_and_kind(method):
    x, y, _ = planted(teacher=6, noise=2.0)
    fitted = fit_map(x, y, WEIGHTS, method, 1e-3)
    target = fitted.target(x)
    torch.testing.assert_close(target.mean(0), torch.zeros_like(target[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.square().mean((0, 3)), torch.ones(2, 2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(target.square().mean(0).sqrt(), fitted.channel_std, atol=1e-4, rtol=1e-4)
    unit = (x - fitted.x_mean) / (fitted.x_scale[..., None] * fitted.x_channel_std)
    torch.testing.assert_close(unit.square().mean(0), torch.ones_like(unit[0]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["ridge", "procrustes"])
def test_permuting_the_teachers_heads_changes_no_target(method):
    x, y, _ = planted(noise=1.0)
    heads = x.unflatten(-1, (3, 4))[..., [2, 0, 1], :].flatten(-2)
    plain, permuted = (fit_map(v, y, WEIGHTS, method, 1e-3).target(v) for v in (x, heads))
    torch.testing.assert_close(plain, permuted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["ridge", "procrustes"])
@pytest.mark.parametrize(("teacher", "student"), [(12, 8), (4, 8), (28, 4), (8, 32), (12, 2)])
def test_any_widths(method, teacher, student):
    x, y, _ = planted(teacher=teacher, student=student)
    assert fit_map(x, y, WEIGHTS, method, 1e-6).target(x).shape == (400, 2, 2, student)


def test_what_cannot_be_fitted_is_refused():
    x, y, _ = planted(tokens=12)
    with pytest.raises(ValueError, match=r"calibration_rows"):
        fit_map(x, y, WEIGHTS, "ridge", 1e-3)
    with pytest.raises(ValueError, match="'nope' is not one of identity, ridge, procrustes"):
        fit_map(x, y, WEIGHTS, "nope", 1e-3)


def test_layers_are_combined_by_their_weights():
    kv = torch.randn(7, 5, 2, 4)
    combined = combine_layers(kv, WEIGHTS)
    torch.testing.assert_close(combined[:, 0], kv[:, 0])
    torch.testing.assert_close(combined[:, 1], (kv[:, 3] + kv[:, 4]) / 2)
    assert combine_layers(kv.half(), WEIGHTS.double()).dtype == torch.half


def test_a_map_knows_its_layers():
    x, y, _ = planted()
    fitted = fit_map(x, y, WEIGHTS.numpy().astype(np.float64), "ridge", 1e-3)
    torch.testing.assert_close(fitted.layer_weights, WEIGHTS)
    one_each = fit_map(x, y, [0, 4], "ridge", 1e-3)
    assert one_each.teacher_layers.tolist() == [0, 4]
    torch.testing.assert_close(one_each.layer_weights, torch.eye(5)[[0, 4]])


def test_save_and_load(tmp_path):
    x, y, _ = planted()
    fitted = fit_map(x, y, WEIGHTS, "ridge", 1e-3)
    fitted.save(tmp_path / "map.safetensors")
    loaded = KVMap.load(tmp_path / "map.safetensors")
    assert torch.equal(loaded.target(x), fitted.target(x))
    assert torch.equal(loaded.layer_weights, WEIGHTS)


def test_relative_error_is_one_for_the_mean_and_zero_for_the_truth():
    y = torch.randn(50, 4)
    assert relative_error(y, y, y.mean(0)) == 0
    assert relative_error(y.mean(0).expand_as(y), y, y.mean(0)) == pytest.approx(1)
