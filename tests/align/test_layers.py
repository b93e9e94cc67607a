"""Layer strategies for every pair of layer counts, and linear CKA against the HSIC formula."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtkv.align.cka import cka_similarity, linear_cka
from mtkv.align.layers import LAYER_STRATEGIES, WEIGHT_STRATEGIES, layer_map, layer_weights, stored_layers

ONE_TO_ONE = ["last_aligned", "ratio", "skip", "uniform"]
counts = st.integers(1, 80)


def similarity_of(teacher, student, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (student, teacher))


def weights_of(strategy, teacher, student, seed=0):
    return layer_weights(strategy, teacher, student, similarity_of(teacher, student, seed))


def test_the_tests_below_cover_every_strategy():
    assert sorted(LAYER_STRATEGIES) == ONE_TO_ONE
    assert sorted(WEIGHT_STRATEGIES) == ["cka", "interpolate"]


@given(counts, counts, st.sampled_from([*ONE_TO_ONE, "interpolate", "cka"]))
def test_every_student_layer_has_a_target_and_the_last_teacher_layer_is_reached(teacher, student, strategy):
    weights = weights_of(strategy, teacher, student)
    assert weights.shape == (student, teacher)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    assert weights[-1, -1] > 0


@given(counts, counts, st.sampled_from(ONE_TO_ONE))
def test_one_to_one_maps_ascend_and_agree_with_their_weights(teacher, student, strategy):
    mapped = layer_map(strategy, teacher, student)
    assert mapped == sorted(mapped)
    assert mapped[-1] == teacher - 1
    assert weights_of(strategy, teacher, student).argmax(axis=1).tolist() == mapped
    assert stored_layers([strategy], teacher, student) == sorted(set(mapped))


@given(counts, counts)
def test_ratio_is_the_nearest_integer_and_keeps_both_ends(teacher, student):
    mapped = layer_map("ratio", teacher, student)
    if student > 1:
        assert mapped[0] == 0
        for i, layer in enumerate(mapped):
            assert abs(layer - Fraction(i * (teacher - 1), student - 1)) <= Fraction(1, 2)


@given(counts, counts)
def test_uniform_visits_each_chunk_once(teacher, student):
    for i, layer in enumerate(layer_map("uniform", teacher, student)):
        assert Fraction(i * teacher, student) < layer + 1 <= max(Fraction((i + 1) * teacher, student) + 1, 1)
    if student <= teacher:
        assert len(set(layer_map("uniform", teacher, student))) == student


@given(counts, counts)
def test_interpolate_has_its_centre_of_mass_at_the_fractional_position(teacher, student):
    weights = layer_weights("interpolate", teacher, student)
    want = np.interp(np.arange(student), [0, student - 1], [0, teacher - 1]) if student > 1 else [teacher - 1]
    np.testing.assert_allclose(weights @ np.arange(teacher), want, atol=1e-9)
    for row in weights:
        used = np.flatnonzero(row)
        assert len(used) <= 2
        assert used[-1] - used[0] <= 1


def test_the_sizes_that_used_to_break():
    assert layer_map("skip", 12, 28) == [0] * 16 + list(range(12))  # 12 // 28 = 0
    assert layer_map("uniform", 12, 28)[-1] == 11
    assert all(layer_map(name, 24, 12)[-1] == 23 for name in ONE_TO_ONE)
    assert all(layer_map(name, 28, 1) == [27] for name in ONE_TO_ONE)
    assert all(layer_map(name, 1, 28) == [0] * 28 for name in ONE_TO_ONE)


def test_known_maps():
    assert layer_map("ratio", 5, 3) == [0, 2, 4]
    assert len(set(layer_map("ratio", 12, 28))) == 12
    assert layer_map("uniform", 12, 4) == [2, 5, 8, 11]
    assert layer_map("skip", 28, 12) == [5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27]
    assert layer_map("last_aligned", 6, 4) == [2, 3, 4, 5]
    assert layer_map("last_aligned", 2, 4) == [0, 0, 0, 1]
    np.testing.assert_allclose(layer_weights("interpolate", 4, 3), [[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])
    assert stored_layers(["ratio"], 5, 3) == [0, 2, 4]
    assert stored_layers(["interpolate"], 4, 3) == [0, 1, 2, 3]
    assert stored_layers(["interpolate"], 28, 4) == [0, 9, 18, 27]
    assert stored_layers(["ratio", "cka"], 5, 3) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("top_k", [1, 2, 3, 99])
def test_cka_takes_the_most_similar_layers_by_similarity(top_k):
    similarity = similarity_of(6, 4, seed=3)
    weights = layer_weights("cka", 6, 4, similarity, top_k)
    for row, own in zip(weights[:-1], similarity[:-1], strict=True):
        best = sorted(range(6), key=lambda t: -own[t])[:top_k]
        want = [own[t] / sum(own[j] for j in best) if t in best else 0 for t in range(6)]
        np.testing.assert_allclose(row, want)
    assert np.count_nonzero(weights[-1]) == min(top_k, 6)


def test_cka_replaces_the_weakest_of_the_last_row():
    weights = layer_weights("cka", 4, 1, np.array([[0.9, 0.6, 0.1, 0.3]]), top_k=2)
    np.testing.assert_allclose(weights, [[0.75, 0, 0, 0.25]])
    hopeless = layer_weights("cka", 3, 2, np.full((2, 3), -1.0))
    np.testing.assert_allclose(hopeless[0], [0.5, 0.5, 0])


def test_what_cannot_be_mapped_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        layer_map("ratio", 0, 3)
    with pytest.raises(ValueError, match="'nope' is not one of ratio, uniform"):
        layer_weights("nope", 3, 3)
    with pytest.raises(ValueError, match="layer_weights gives its matrix"):
        layer_map("interpolate", 3, 3)
    for similarity in (None, np.zeros((3, 2)), np.full((2, 3), np.nan)):
        with pytest.raises(ValueError, match=r"similarity .* = \(2, 3\)"):
            layer_weights("cka", 3, 2, similarity)
    with pytest.raises(ValueError, match="top_k"):
        layer_weights("cka", 3, 2, np.ones((2, 3)), top_k=0)


def hsic_cka(x, y):
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n
    k, m = x @ x.T, y @ y.T
    hsic = lambda a, b: np.trace(a @ centre @ b @ centre) / (n - 1) ** 2  # noqa: E731
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("widths", [(3, 5), (40, 2)])
def test_linear_cka_equals_the_hsic_formula(widths):
    generator = np.random.default_rng(1)
    x, y = (generator.normal(2, 3, (30, width)) for width in widths)
    y[:, 0] += x[:, 0]
    assert linear_cka(x, y) == pytest.approx(hsic_cka(x, y), rel=1e-9)
    turn = np.linalg.qr(generator.normal(size=(widths[0], widths[0])))[0]
    assert linear_cka(x, 7 * x @ turn + 1) == pytest.approx(1)
    assert linear_cka(x, np.ones((30, 2))) == 0


def test_cka_similarity_holds_every_pair_of_layers():
    generator = np.random.default_rng(2)
    student, teacher = generator.normal(size=(50, 3, 4)), generator.normal(size=(50, 5, 7))
    student[:, 1, :2] = teacher[:, 4, :2]
    similarity = cka_similarity(student, teacher)
    want = [[hsic_cka(student[:, i], teacher[:, j]) for j in range(5)] for i in range(3)]
    np.testing.assert_allclose(similarity, want, rtol=1e-9)
    assert similarity[1].argmax() == 4


def test_origin_is_the_layers_that_a_student_was_cut_from():
    weights = layer_weights("origin", 5, 2, origin=[0, 3])
    assert weights.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert stored_layers(["origin"], 5, 2, [0, 3]) == [0, 3]
    assert stored_layers(["ratio", "origin"], 5, 2, [0, 3]) == [0, 3, 4]
    with pytest.raises(ValueError, match=r"origin needs the teacher layers of 2 student layers, got \[\]"):
        layer_weights("origin", 5, 2)
