"""Every line of the original design about alignment and its pictures, called as the guides call it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import mtkv.align
from mtkv.align import (
    KVDimensionProjector,
    KVProjector,
    MultiTeacherHeadDimAdapter,
    MultiTeacherRoPEScaler,
    align_sequence_lengths,
    apply_char_alignment,
    build_char_align_matrix,
    build_multi_teacher_layer_map,
    build_safe_linear_indices,
    interpolate_teacher_layers,
    safe_time_resample,
)
from mtkv.report import visualize_alignment, visualize_layer_mapping

TEXT = "Tom has 12 apples"
STUDENT_TOKENS = ["Tom", "Ġhas", "Ġ1", "2", "Ġapp", "les"]
TEACHER_TOKENS = ["▁Tom", "▁has", "▁12", "▁apples"]


def kv_pairs(layers=None, batch=2, heads=4, time=5, dim=8, teachers=1):
    shape = (batch, heads, time, dim)
    return [[torch.randn(shape) for _ in range(layers)] for _ in range(teachers)]


def test_char_alignment():
    matrix = build_char_align_matrix(STUDENT_TOKENS, TEACHER_TOKENS, TEXT)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(6))
    assert matrix.argmax(-1).tolist() == [0, 1, 2, 2, 3, 3]
    teacher_kv, student_kv = torch.randn(2, 4, 4, 8), torch.randn(2, 2, 6, 8)
    aligned_kv, mask = apply_char_alignment(teacher_kv, matrix)
    assert aligned_kv.shape == (2, 4, 6, 8)
    assert mask.all()
    torch.testing.assert_close(aligned_kv[:, :, 3], teacher_kv[:, :, 2])
    teacher, student, teacher_mask, student_mask = align_sequence_lengths(teacher_kv, student_kv, align_matrix=matrix)
    assert teacher.shape[2] == student.shape[2] == len(teacher_mask) == len(student_mask) == 6
    teacher, student, _, _ = align_sequence_lengths(torch.randn(2, 8, 64), torch.randn(2, 10, 64))
    assert teacher.shape == student.shape == (2, 10, 64)


def test_time_resampling():
    x = torch.randn(4, 2, 80, 128)
    indices = build_safe_linear_indices(4, 80, 50, x.device)
    assert safe_time_resample(x, indices).shape == (4, 2, 50, 128)


@pytest.mark.parametrize("strategy", ["ratio", "uniform", "skip", "last_aligned", "interpolate", "cka"])
def test_layer_maps_of_several_teachers(strategy):
    given = {"similarities": [np.random.default_rng(0).uniform(0, 1, (12, t)) for t in (24, 32)]}
    layer_maps = build_multi_teacher_layer_map([24, 32], 12, strategy=strategy, **(given if strategy == "cka" else {}))
    assert len(layer_maps) == 2
    teacher_kvs = kv_pairs(32)[0]
    student_kvs = interpolate_teacher_layers(teacher_kvs, layer_maps[1], 12)
    assert len(student_kvs) == 12
    for student, kv in enumerate(student_kvs):
        sources = layer_maps[1][student]
        assert sum(weight for _, weight in sources) == pytest.approx(1)
        torch.testing.assert_close(kv, torch.stack([weight * teacher_kvs[t] for t, weight in sources]).sum(0))
    assert 31 in [t for t, _ in layer_maps[1][11]]


def test_layers_of_all_teachers_at_once_and_pairs():
    layer_map = build_multi_teacher_layer_map([3, 5], 7, strategy="ratio")
    first, second = kv_pairs(3)[0], kv_pairs(5)[0]
    both = interpolate_teacher_layers([first, second], layer_map, 7)
    assert [len(side) for side in both] == [7, 7]
    torch.testing.assert_close(both[1][6], second[4])
    pairs = interpolate_teacher_layers([(k, -k) for k in first], layer_map[0], 7)
    torch.testing.assert_close(pairs[6][1], -first[2])


def test_layer_maps_with_holes_are_refused():
    kvs = kv_pairs(3)[0]
    with pytest.raises(ValueError, match="no teacher layer for student layer 1"):
        interpolate_teacher_layers(kvs, {0: [(0, 1.0)]}, 2)
    with pytest.raises(ValueError, match=r"reads teacher layers \[3\], but there are 3"):
        interpolate_teacher_layers(kvs, {0: [(3, 1.0)]}, 1)
    with pytest.raises(ValueError, match="cka needs"):
        build_multi_teacher_layer_map([24], 12, strategy="cka")


def test_head_and_width_adapters():
    adapter = MultiTeacherHeadDimAdapter([(768, 12), (1024, 16)], 512, 8)
    ks, vs = ([torch.randn(2, 12, 10, 64), torch.randn(2, 16, 7, 64)] for _ in range(2))
    adapted_ks, adapted_vs = adapter(ks, vs)
    assert [k.shape for k in adapted_ks] == [v.shape for v in adapted_vs] == [(2, 8, 10, 64), (2, 8, 7, 64)]
    flat_ks, _ = adapter(*[[torch.randn(2, 10, 768), torch.randn(2, 10, 1024)]] * 2)
    assert [k.shape for k in flat_ks] == [(2, 10, 512)] * 2
    with pytest.raises(ValueError, match="2 teachers, but 1 keys"):
        adapter(ks[:1], vs)

    k, v = KVProjector(Ht=12, Hs=2, Dt=128, Ds=128)(torch.randn(4, 12, 50, 128), torch.randn(4, 12, 50, 128))
    assert k.shape == v.shape == (4, 2, 50, 128)

    name = "Qwen2.5-7B"
    projector = KVDimensionProjector(
        teacher_configs={name: {"d_model": 3584, "num_layers": 28, "num_kv_heads": 4}},
        student_d_model=2048,
        student_num_kv_heads=2,
        mlp_ratio=1.0,
    )
    k, v = projector.project_teacher_kv(name, torch.randn(1, 28, 4, 6, 128), torch.randn(1, 28, 4, 6, 128))
    assert k.shape == v.shape == (1, 28, 2, 6, 128)


def test_flat_heads_are_the_adapters_own_layout():
    adapter = MultiTeacherHeadDimAdapter([(8, 2)], 6, 3)
    k = torch.randn(1, 2, 5, 4)
    (heads,), _ = adapter([k], [k])
    (flat,), _ = adapter([torch.cat([k[:, 0], k[:, 1]], dim=-1)], [torch.cat([k[:, 0], k[:, 1]], dim=-1)])
    torch.testing.assert_close(torch.cat([heads[:, i] for i in range(3)], dim=-1), flat)


@pytest.mark.parametrize("method", ["ntk", "linear", "dynamic", "ntk_two_thirds"])
def test_rope_scaling(method):
    scaler = MultiTeacherRoPEScaler([(10000, 2048), (10000, 4096)], 2048, scaling_method=method)
    ks, vs = ([torch.randn(2, 4, 10, 64) for _ in range(2)] for _ in range(2))
    scaled_ks, scaled_vs = scaler.scale_kv_pairs(ks, vs)
    assert torch.equal(scaled_ks[0], ks[0])
    assert all(torch.equal(a, b) for a, b in zip(scaled_vs, vs, strict=True))
    assert torch.allclose(scaled_ks[1], ks[1]) == (method == "dynamic")  # 10 tokens lie inside the trained length
    torch.testing.assert_close(scaled_ks[1].norm(dim=-1), ks[1].norm(dim=-1))


def test_pictures():
    layer_map = build_multi_teacher_layer_map([24, 32], 12, strategy="ratio")[1]
    figure = visualize_layer_mapping(layer_map, num_teacher_layers=32, num_student_layers=12)
    assert np.asarray(figure.data[0].z).shape == (12, 32)
    matrix = build_char_align_matrix(STUDENT_TOKENS, TEACHER_TOKENS, TEXT)
    figure = visualize_alignment(matrix, STUDENT_TOKENS, TEACHER_TOKENS)
    np.testing.assert_allclose(figure.data[0].z, matrix.numpy())


def test_every_name_loads_and_the_package_itself_is_cheap():
    assert all(callable(getattr(mtkv.align, name)) for name in mtkv.align.__all__)
    assert set(mtkv.align.__all__) <= set(dir(mtkv.align))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = mtkv.align.nope
    code = "import sys, mtkv.align; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
