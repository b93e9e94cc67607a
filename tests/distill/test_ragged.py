"""Packed tokens as padded rows."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtkv.distill.ragged import causal_log_softmax, causal_pairs, to_padded


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_every_row_holds_its_tokens_in_order_and_zeros_behind_them(lengths):
    sample = torch.tensor([row for row, length in enumerate(lengths) for _ in range(length)], dtype=torch.long)
    x = torch.arange(1.0, 2 * len(sample) + 1).reshape(len(sample), 2)
    padded, mask = to_padded(x, sample, len(lengths))
    assert padded.shape == (len(lengths), max(lengths), 2)
    for row, length in enumerate(lengths):
        before = sum(lengths[:row])
        assert mask[row].tolist() == [True] * length + [False] * (max(lengths) - length)
        assert torch.equal(padded[row, :length], x[before : before + length])
        assert (padded[row, length:] == 0).all()


def test_the_way_back_of_the_gradient():
    x = torch.randn(4, 3, requires_grad=True)
    padded, _ = to_padded(x, torch.tensor([0, 2, 2, 2]), 4)
    (padded * 2).sum().backward()
    assert (x.grad == 2).all()


def test_nobody_looks_at_padding_or_ahead_and_probabilities_sum_to_one():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    allowed = causal_pairs(mask)
    logits = torch.full((2, 3, 3), 1e4)
    probability = causal_log_softmax(logits, allowed).exp()
    assert torch.allclose(probability[0], torch.tensor([[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]))
    assert torch.equal(probability[1], torch.tensor([[1.0, 0, 0]] * 3))
    nobody = causal_log_softmax(logits, torch.zeros_like(allowed))
    assert nobody.isfinite().all()
