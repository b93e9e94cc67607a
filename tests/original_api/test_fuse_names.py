"""The calls of the original design, line by line, against plain loops; any number of teachers and any width."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine as cosine_distance
from scipy.special import softmax

import mtkv.fuse
from mtkv.fuse import (
    EntropyRegularizer,
    LearnableRouter,
    compute_multi_teacher_prototypes,
    compute_routing_weights,
    fuse_kvs_fixed,
    fuse_kvs_learnable,
    fuse_kvs_similarity,
)


def kvs(teachers=3, batch=2, heads=2, time=5, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, time, width, generator=generator) for _ in range(teachers)]


def test_every_public_name_loads_and_others_do_not():
    assert all(callable(getattr(mtkv.fuse, name)) for name in mtkv.fuse.__all__)
    with pytest.raises(AttributeError, match="fuse_everything"):
        mtkv.fuse.fuse_everything  # noqa: B018


def test_the_guide_from_prototypes_to_the_regularizer():
    teacher_kvs_list = kvs(heads=4, width=128)
    student_hidden = torch.randn(2, 5, 512)

    prototypes = compute_multi_teacher_prototypes(teacher_kvs_list, method="mean")
    weights = compute_routing_weights(student_hidden, prototypes, temperature=1.0)
    assert weights.shape == (2, 3)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))

    fused = fuse_kvs_fixed(teacher_kvs_list, weights=[0.5, 0.3, 0.2])
    torch.testing.assert_close(fused, 0.5 * teacher_kvs_list[0] + 0.3 * teacher_kvs_list[1] + 0.2 * teacher_kvs_list[2])

    fused, same = fuse_kvs_similarity(teacher_kvs_list, student_hidden, prototypes, temperature=1.0)
    torch.testing.assert_close(same, weights)
    assert fused.shape == teacher_kvs_list[0].shape

    router = LearnableRouter(hidden_dim=512, num_teachers=3, router_type="attention")
    fused, weights = fuse_kvs_learnable(teacher_kvs_list, student_hidden, router)
    assert fused.shape == teacher_kvs_list[0].shape
    loss = fused.square().mean() + EntropyRegularizer(target="specialized", strength=0.01).compute_loss(weights)
    loss.backward()
    assert max(parameter.grad.abs().max() for parameter in router.parameters() if parameter.grad is not None) > 0


@pytest.mark.parametrize("method", ["mean", "cls"])
def test_prototypes_are_means_or_first_positions_with_heads_side_by_side(method):
    keys, values = kvs(), kvs(seed=1)
    found = compute_multi_teacher_prototypes(list(zip(keys, values, strict=True)), method=method)
    assert found.shape == (2, 3, 2 * 2 * 8)
    for row in range(2):
        for i in range(3):
            parts = [
                x[i][row, head, 0] if method == "cls" else sum(x[i][row, head, t] for t in range(5)) / 5
                for x in (keys, values)
                for head in range(2)
            ]
            torch.testing.assert_close(found[row, i], torch.cat(parts))


def test_kmeans_prototypes_find_planted_groups_of_positions():
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    teacher = centres.repeat(3, 1)[None, None]  # 12 positions, each group three times
    found = compute_multi_teacher_prototypes([teacher, teacher + 1], method="kmeans")
    assert found.shape == (1, 2, 4, 2)
    assert {tuple(point) for point in found[0, 0].tolist()} == {tuple(point) for point in centres.tolist()}
    weights = compute_routing_weights(torch.tensor([[9.0, 9.0]]), found, similarity="l2", temperature=0.1)
    assert weights[0, 0] > 0.99


def test_routing_weights_are_a_softmax_of_cosines_per_row():
    query, prototypes = torch.randn(3, 6), torch.randn(3, 4, 6)
    found = compute_routing_weights(query, prototypes, temperature=0.2)
    for row in range(3):
        scores = [(1 - cosine_distance(query[row].numpy(), prototypes[row, i].numpy())) / 0.2 for i in range(4)]
        assert found[row].tolist() == pytest.approx(softmax(scores).tolist(), rel=1e-4)
    over_time = query[:, None] + torch.tensor([-1.0, 0.0, 1.0])[:, None]
    torch.testing.assert_close(compute_routing_weights(over_time, prototypes, 0.2), found)


def test_a_students_own_kv_is_most_like_the_teacher_it_copies():
    teachers = kvs(teachers=4)
    prototypes = compute_multi_teacher_prototypes(teachers)
    fused, weights = fuse_kvs_similarity(teachers, teachers[2], prototypes, temperature=0.01)
    assert weights.argmax(1).tolist() == [2, 2]
    torch.testing.assert_close(fused, teachers[2], atol=1e-3, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 7), st.integers(0, 1000))
def test_any_number_of_teachers_and_any_width_fuse_like_a_loop(teachers, heads, width, seed):
    keys, values = (kvs(teachers, 3, heads, 4, width, seed + shift) for shift in (0, 1))
    pairs = list(zip(keys, values, strict=True))
    prototypes = compute_multi_teacher_prototypes(pairs)
    query = torch.randn(3, 2 * heads * width, generator=torch.Generator().manual_seed(seed))
    router = LearnableRouter(2 * heads * width, teachers, "mlp")
    torch.nn.init.normal_(router.scorer.output.weight)
    for fused, weights in (
        fuse_kvs_similarity(pairs, query, prototypes, temperature=0.3),
        fuse_kvs_learnable(pairs, query, router),
    ):
        assert isinstance(fused, tuple)
        torch.testing.assert_close(weights.sum(1), torch.ones(3))
        for kind, source in enumerate((keys, values)):
            for row in range(3):
                want = sum(weights[row, i] * source[i][row] for i in range(teachers))
                torch.testing.assert_close(fused[kind][row], want)


def test_permuting_teachers_permutes_weights_and_leaves_the_fused_kv():
    teachers, order = kvs(teachers=4), [3, 1, 0, 2]
    moved = [teachers[i] for i in order]
    query = torch.randn(2, 16)
    fused, weights = fuse_kvs_similarity(teachers, query, compute_multi_teacher_prototypes(teachers), 0.3)
    other, permuted = fuse_kvs_similarity(moved, query, compute_multi_teacher_prototypes(moved), 0.3)
    torch.testing.assert_close(permuted, weights[:, order])
    torch.testing.assert_close(other, fused)


def test_one_pair_per_layer_keeps_its_structure_and_identical_kvs_stay_what_they_are():
    layers = [(x, x + 1) for x in kvs()]
    fused = fuse_kvs_fixed([layers, layers, layers], weights=[0.5, 0.3, 0.2])
    for (key, value), (fused_key, fused_value) in zip(layers, fused, strict=True):
        torch.testing.assert_close(fused_key, key)
        torch.testing.assert_close(fused_value, value)
    torch.testing.assert_close(fuse_kvs_fixed(kvs(teachers=4)), sum(kvs(teachers=4)) / 4)
    assert fuse_kvs_fixed([x.bfloat16() for x in kvs()], [0.5, 0.3, 0.2]).dtype == torch.bfloat16


@pytest.mark.parametrize("router_type", ["mlp", "gate", "attention"])
def test_training_a_router_through_the_fused_kv_finds_the_right_teacher_for_each_row(router_type):
    torch.manual_seed(0)
    teachers, query = kvs(teachers=3, batch=6), torch.eye(6)
    right = [0, 2, 1, 1, 0, 2]
    target = torch.stack([teachers[i][row] for row, i in enumerate(right)])
    router = LearnableRouter(hidden_dim=6, num_teachers=3, router_type=router_type)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        fused, weights = fuse_kvs_learnable(teachers, query, router)
        (fused - target).square().mean().backward()
        optimizer.step()
    assert weights.argmax(1).tolist() == right
    assert weights.amax(1).min() > 0.8


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5], "2 weights for 3 teachers"),
        ([0.5, 0.3, 0.3], "sum 1"),
        ([1.2, -0.4, 0.2], "≥ 0"),
        ([float("nan"), 0.5, 0.5], "≥ 0"),
    ],
)
def test_fixed_weights_that_are_no_distribution_over_the_teachers_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        fuse_kvs_fixed(kvs(), weights=weights)


def test_kvs_that_do_not_fit_together_are_refused_with_their_shapes():
    with pytest.raises(ValueError, match=r"\[2, 2, 5, 9\]"):
        fuse_kvs_fixed([*kvs(teachers=1), *kvs(teachers=1, width=9)])
    with pytest.raises(ValueError, match="one width"):
        compute_multi_teacher_prototypes([*kvs(teachers=1), *kvs(teachers=1, width=9)])
    with pytest.raises(ValueError, match="query has 4 features, the prototypes 16"):
        compute_routing_weights(torch.zeros(2, 4), compute_multi_teacher_prototypes(kvs()))
    with pytest.raises(ValueError, match="temperature"):
        compute_routing_weights(torch.zeros(2, 16), compute_multi_teacher_prototypes(kvs()), temperature=0)
    with pytest.raises(ValueError, match="weights for 4 teachers, KV of 3"):
        fuse_kvs_learnable(kvs(), torch.zeros(2, 16), LearnableRouter(16, 4))
    with pytest.raises(ValueError, match="mean, cls, kmeans"):
        compute_multi_teacher_prototypes(kvs(), method="median")
    with pytest.raises(ValueError, match="no teacher"):
        fuse_kvs_fixed([])
