"""The ratio layer map for every pair of layer counts."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtkv.align.layers import layer_map, stored_layers


@given(st.integers(1, 80), st.integers(1, 80))
def test_every_student_layer_has_a_target_and_the_last_teacher_layer_is_reached(teacher, student):
    mapped = layer_map("ratio", teacher, student)
    assert len(mapped) == student
    assert mapped == sorted(mapped)
    assert mapped[-1] == teacher - 1
    assert all(0 <= layer < teacher for layer in mapped)
    if student > 1:
        assert mapped[0] == 0
        for i, layer in enumerate(mapped):  # nearest integer, by exact arithmetic
            assert abs(layer - Fraction(i * (teacher - 1), student - 1)) <= Fraction(1, 2)


def test_known_maps():
    assert layer_map("ratio", 5, 3) == [0, 2, 4]
    assert layer_map("ratio", 24, 12)[-1] == 23
    assert len(set(layer_map("ratio", 12, 28))) == 12
    assert stored_layers(["ratio"], 5, 3) == [0, 2, 4]


def test_counts_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        layer_map("ratio", 0, 3)
