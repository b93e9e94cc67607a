"""Layer ranges, annealing, and shares of layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtkv.distill.layer_schedule import layer_schedule, layer_shares


@pytest.mark.parametrize(
    ("layers", "first", "last", "anneal", "progress", "expected"),
    [
        (6, 0, 5, 0.3, 0.0, [1, 1, 0, 0, 0, 0]),
        (6, 0, 5, 0.3, 0.299, [1, 1, 0, 0, 0, 0]),
        (6, 0, 5, 0.3, 0.3, [1, 1, 1, 1, 1, 1]),
        (6, 0, 5, 0.0, 0.0, [1, 1, 1, 1, 1, 1]),
        (6, 2, 5, 0.5, 0.1, [0, 0, 1, 1, 0, 0]),  # a third of 4, rounded up
        (6, 2, 5, 0.5, 0.9, [0, 0, 1, 1, 1, 1]),
        (3, 1, 1, 0.5, 0.1, [0, 1, 0]),
        (1, 0, 0, 1.0, 0.0, [1]),
    ],
)
def test_examples(layers, first, last, anneal, progress, expected):
    assert layer_schedule(layers, first, last, anneal, progress).tolist() == expected


@settings(deadline=None)
@given(st.data())
def test_annealing_starts_at_the_front_of_the_range_and_never_drops_a_layer(data):
    layers = data.draw(st.integers(1, 40))
    first = data.draw(st.integers(0, layers - 1))
    last = data.draw(st.integers(first, layers - 1))
    anneal, *progress = data.draw(st.tuples(*[st.floats(0, 1)] * 3))
    early, late = (layer_schedule(layers, first, last, anneal, share) for share in sorted(progress))
    assert (early <= late).all()
    assert early[first] == 1
    assert 3 * int(early.sum()) >= last - first + 1
    assert [i for i, value in enumerate(layer_schedule(layers, first, last, anneal, 1.0)) if value] == list(
        range(first, last + 1)
    )


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (2, 1), (0, 3)])
def test_ranges_outside_the_model_are_refused(first, last):
    with pytest.raises(ValueError, match=f"layers {first} to {last}"):
        layer_schedule(3, first, last, 0.3, 0.5)


def test_shares_sum_to_one_over_the_layers_that_count():
    kept, share = layer_shares(torch.tensor([0.0, 3.0, 0.0, 1.0]), 4)
    assert (kept, share.tolist()) == ([1, 3], [0.75, 0.25])
    assert layer_shares(None, 2)[1].tolist() == [0.5, 0.5]
    assert layer_shares(torch.zeros(2), 2)[0] == []
