"""Trainable adapters: one contract for every kind, layers and kinds apart, and each formula against plain modules."""

import pytest
import torch
from torch import nn

from mtkv.align.adapters import (
    ADAPTERS,
    AdapterShape,
    ElasticAdapter,
    LinearAdapter,
    TwoStepAdapter,
    build_adapter,
    group_average,
)
from mtkv.align.closed_form_maps import fit_map
from mtkv.original_api.projectors import (
    KVDimensionProjector,
    KVProjector,
    MultiTeacherHeadDimAdapter,
    join_heads,
    split_heads,
)

HEADS = [(12, 8), (4, 8), (28, 4), (8, 32), (12, 2)]
KINDS = ["elastic", "linear", "two_step", "z_space"]


def test_the_tests_below_cover_every_kind():
    assert sorted(ADAPTERS) == KINDS


@pytest.mark.parametrize(("heads_in", "heads_out"), HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_head_counts_give_the_student_width_and_a_gradient_everywhere(kind, heads_in, heads_out):
    torch.manual_seed(0)
    adapter = build_adapter(
        kind, AdapterShape(3, heads_in * 4, heads_out * 6, heads_in, heads_out, shared_width=heads_out * 6)
    )
    x = torch.randn(5, 3, 2, heads_in * 4)
    out = adapter(x)
    assert out.shape == (5, 3, 2, heads_out * 6)
    (out + (adapter.project_student(out) if kind == "z_space" else 0)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_kinds_do_not_mix(kind):
    torch.manual_seed(0)
    adapter = build_adapter(kind, AdapterShape(3, 8, 6, 2, 3))
    x = torch.randn(4, 3, 2, 8)
    changed = x.clone()
    changed[:, 1, 0] = torch.randn(4, 8)
    moved = (adapter(changed) - adapter(x)).abs().amax(dim=(0, 3)) > 1e-7
    assert moved.tolist() == [[False, False], [True, False], [False, False]]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_learns_a_planted_map(kind):
    torch.manual_seed(0)
    adapter = build_adapter(kind, AdapterShape(2, 8, 8, 2, 2, shared_width=8, ratio=4.0))
    x = torch.randn(64, 2, 2, 8)
    heads = torch.einsum("nlkhi,io,hg->nlkgo", x.unflatten(-1, (2, 4)), torch.randn(4, 4), torch.randn(2, 2))
    y = heads.flatten(-2)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (adapter(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * y.square().mean()


def test_a_linear_adapter_starts_small_or_as_the_map():
    x, y = torch.randn(100, 2, 2, 6) * 3 + 1, torch.randn(100, 2, 2, 4)
    y = y + x[..., :4]
    kv_map = fit_map(x, y, [0, 1], "ridge", 1e-3)
    torch.testing.assert_close(LinearAdapter.from_map(kv_map)(x), kv_map.target(x), atol=1e-4, rtol=1e-4)
    torch.manual_seed(0)
    fresh = LinearAdapter(2, 60, 40)
    assert 0.015 < fresh.weight.std() < 0.025
    assert fresh.weight.mean().abs() < 1e-3


def test_two_step_is_a_head_width_map_then_a_head_mix():
    torch.manual_seed(0)
    adapter, x = TwoStepAdapter(2, 12, 10, 3, 2), torch.randn(4, 2, 2, 12)
    out = adapter(x).unflatten(-1, (2, 5))
    for layer in range(2):
        for kind in range(2):
            narrow = [x[:, layer, kind, 4 * h : 4 * h + 4] @ adapter.width[layer, kind] for h in range(3)]
            for g in range(2):
                want = sum(adapter.mix[layer, kind, h, g] * narrow[h] for h in range(3))
                torch.testing.assert_close(out[:, layer, kind, g], want)


def test_elastic_equals_torch_modules():
    torch.manual_seed(0)
    adapter, x = ElasticAdapter(2, 8, 5, ratio=0.5, dropout=0.3).eval(), torch.randn(4, 2, 2, 8)
    assert adapter.expand.weight.shape == (2, 2, 8, 4)
    norm = nn.LayerNorm(8)
    first, last = nn.Linear(8, 4), nn.Linear(4, 5)
    with torch.no_grad():
        adapter.norm_weight[1, 0], adapter.norm_bias[1, 0] = torch.randn(8), torch.randn(8)
        norm.weight.copy_(adapter.norm_weight[1, 0])
        norm.bias.copy_(adapter.norm_bias[1, 0])
        for module, source in ((first, adapter.expand), (last, adapter.project)):
            source.bias[1, 0] = torch.randn(module.out_features)
            module.weight.copy_(source.weight[1, 0].T)
            module.bias.copy_(source.bias[1, 0])
    torch.testing.assert_close(adapter(x)[:, 1, 0], nn.Sequential(norm, first, nn.SiLU(), last)(x[:, 1, 0]))
    torch.manual_seed(1)
    trained = adapter.train()
    assert not torch.equal(trained(x), trained(x))


@pytest.mark.parametrize(("heads_in", "heads_out"), HEADS)
def test_group_average_keeps_the_mean_of_the_heads(heads_in, heads_out):
    mix = group_average(heads_in, heads_out)
    torch.testing.assert_close(mix.sum(0), torch.ones(heads_out))
    torch.testing.assert_close(mix.sum(1), torch.full((heads_in,), heads_out / heads_in))
    if heads_in % heads_out == 0:
        x = torch.randn(heads_in)
        torch.testing.assert_close(x @ mix, x.unflatten(0, (heads_out, -1)).mean(1))


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="'nope' is not one of linear"):
        build_adapter("nope", AdapterShape(1, 4, 4))
    with pytest.raises(ValueError, match="needs heads_in and heads_out"):
        build_adapter("two_step", AdapterShape(1, 4, 4))
    with pytest.raises(ValueError, match="3 heads do not divide a width of 4"):
        build_adapter("two_step", AdapterShape(1, 4, 4, 3, 2))


@pytest.mark.parametrize(("heads_in", "heads_out"), HEADS)
def test_original_modules_take_any_head_counts(heads_in, heads_out):
    k, v = (torch.randn(2, heads_in, 5, 4) for _ in range(2))
    outs = [
        KVProjector(Ht=heads_in, Hs=heads_out, Dt=4, Ds=6)(k, v),
        [
            side[0]
            for side in MultiTeacherHeadDimAdapter([(heads_in * 4, heads_in)], heads_out * 6, heads_out)([k], [v])
        ],
        KVDimensionProjector(
            {"a.b": {"d_model": 999, "num_kv_heads": heads_in}}, 777, heads_out, student_head_dim=6
        ).project_teacher_kv("a.b", k, v),
    ]
    for key, value in outs:
        assert key.shape == value.shape == (2, heads_out, 5, 6)


def test_keys_and_values_have_weights_of_their_own():
    k = torch.randn(2, 4, 5, 4)
    torch.manual_seed(0)
    for key, value in (
        KVProjector(Ht=4, Hs=2, Dt=4, Ds=4)(k, k),
        KVDimensionProjector({"t": {"d_model": 16, "num_kv_heads": 4, "head_dim": 4}}, 8, 2).project_teacher_kv(
            "t", k, k
        ),
    ):
        assert not torch.allclose(key, value)


def test_kv_projector_starts_as_the_mean_of_each_group():
    projector, k = KVProjector(Ht=6, Hs=2, Dt=3, Ds=3), torch.randn(2, 6, 5, 3)
    narrow = projector.width["key"](k)
    torch.testing.assert_close(projector(k, k)[0], torch.stack([narrow[:, :3].mean(1), narrow[:, 3:].mean(1)], dim=1))


def test_dimension_projector_flat_layers_and_lazy_widths():
    flat = KVDimensionProjector({"t": {"d_model": 16}}, 8, mlp_ratio=0.5)
    assert flat.projectors["0"]["key"][1].out_features == 8
    assert flat.project_teacher_kv("t", *[torch.randn(2, 3, 5, 16)] * 2)[0].shape == (2, 3, 5, 8)
    lazy = KVDimensionProjector({"t": {"d_model": 16, "num_kv_heads": 2}}, 8, student_num_kv_heads=1)
    assert not list(lazy.parameters())
    kv = torch.randn(2, 3, 2, 5, 4)  # with a layer dimension
    first = lazy.project_teacher_kv("t", kv, kv)[0]
    assert first.shape == (2, 3, 1, 5, 4)
    torch.testing.assert_close(lazy.project_teacher_kv("t", kv[:, 1], kv[:, 1])[0], first[:, 1])
    for shape, message in (((2, 3, 5, 4), "expected"), ((2, 2, 5, 6), "channels do not fit")):
        with pytest.raises(ValueError, match=message):
            lazy.project_teacher_kv("t", torch.randn(shape), torch.randn(shape))
    with pytest.raises(ValueError, match="'u' is not one of t"):
        lazy.project_teacher_kv("u", kv, kv)


def test_joining_and_splitting_heads_are_inverse():
    kv = torch.randn(2, 3, 5, 4)
    joined = join_heads(kv)
    torch.testing.assert_close(joined[:, :, 4:8], kv[:, 1])
    torch.testing.assert_close(split_heads(joined, 3), kv)
