"""The attention term against a loop with scipy and the student's own attention."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy
from torch.nn import functional as F

from mtkv.distill.attention_kl import attention_kl
from mtkv.distill.ragged import causal_log_softmax, causal_pairs


def packed(lengths, heads=4, kv_heads=2, layers=3, head_dim=4, seed=0):
    """queries, student keys, target keys and sample."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    shapes = [(len(sample), layers, count, head_dim) for count in (heads, kv_heads, kv_heads)]
    return *(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes), sample


def reference(queries, own, target, sample, layer_share, scaling):
    group = queries.shape[2] // own.shape[2]
    total = 0.0
    for layer, share in enumerate(layer_share):
        for token in range(len(sample)):
            earlier = [j for j in range(token + 1) if sample[j] == sample[token]]
            for head in range(queries.shape[2]):
                q = queries[token, layer, head].numpy()
                p, p_own = (
                    softmax(keys[earlier, layer, head // group].numpy() @ q * scaling) for keys in (target, own)
                )
                total += share * entropy(p, p_own) / queries.shape[2] / len(sample)
    return total


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_equals_a_loop_with_scipy(heads, kv_heads, scaling):
    *tensors, sample = packed([4, 0, 1, 3], heads, kv_heads)
    found = attention_kl(*tensors, sample, 4, torch.tensor([1.0, 0.0, 3.0]), scaling)
    expected = reference(*tensors, sample, [0.25, 0, 0.75], scaling or 1 / np.sqrt(4))
    assert found.item() == pytest.approx(expected)
    assert expected > 0.01


def test_the_distributions_are_those_of_torch_attention_with_grouped_heads():
    queries, keys, values, _ = (x[:, 0] for x in (*packed([5])[:3], torch.zeros(1, 1)))
    q, k, v = (x.transpose(0, 1)[None] for x in (queries, keys, values))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0]
    allowed = causal_pairs(torch.ones(1, 5, dtype=torch.bool))
    logits = torch.einsum("ikgd,jkd->kgij", queries.unflatten(1, (2, 2)), keys) / 2
    found = torch.einsum("kgij,jkd->kgid", causal_log_softmax(logits, allowed).exp(), values).flatten(0, 1)
    assert torch.allclose(found, expected)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 10_000))
def test_a_batch_is_the_mean_of_its_rows_weighted_by_tokens(lengths, seed):
    *tensors, sample = packed(lengths, layers=1, seed=seed)
    together = attention_kl(*tensors, sample, len(lengths)).item()
    alone = [
        attention_kl(*(x[sample == row] for x in tensors), sample[sample == row] * 0, 1).item()
        for row in range(len(lengths))
    ]
    assert together == pytest.approx(np.dot(alone, lengths) / max(sum(lengths), 1), abs=1e-12)


def test_gradient_in_range_only_and_none_for_the_queries():
    *tensors, sample = packed([3, 4])
    queries, own, target = (x.requires_grad_() for x in tensors)
    attention_kl(queries, own, target, sample, 2, torch.tensor([0.0, 1.0, 1.0])).backward()
    assert queries.grad is None
    assert (own.grad[:, 0] == 0).all()
    assert (own.grad[:, 1:].abs().sum((0, 3)) > 0).all()


def test_gradient_equals_finite_differences():
    queries, own, target, sample = packed([3, 1, 2], layers=1, head_dim=2)
    assert torch.autograd.gradcheck(
        lambda a, b: attention_kl(queries, a, b, sample, 3), (own.requires_grad_(), target.requires_grad_())
    )


@pytest.mark.parametrize("lengths", [[0, 0], [1, 1], [1, 0]])
def test_rows_without_a_pair_of_tokens_cost_nothing(lengths):
    queries, own, target, sample = packed(lengths)
    loss = attention_kl(queries, own.requires_grad_(), target, sample, 2)
    loss.backward()
    assert loss.item() == 0
    assert (own.grad == 0).all()


def test_extreme_inputs_and_autocast_stay_finite_and_precise():
    queries, own, target, sample = packed([5, 2])
    queries, own, target = queries.float(), own.float(), target.float()
    huge = (1e4 * own).requires_grad_()
    loss = attention_kl(1e4 * queries, huge, 1e4 * target, sample, 2)
    loss.backward()
    assert loss.isfinite()
    assert huge.grad.isfinite().all()
    plain = attention_kl(queries, own, target, sample, 2).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention_kl(queries, own, target, sample, 2).item() == plain


def test_a_shift_of_all_keys_changes_nothing_and_uneven_groups_are_refused():
    queries, own, target, sample = packed([5, 2])
    plain = attention_kl(queries, own, target, sample, 2).item()
    assert attention_kl(queries, own + torch.randn(3, 2, 4), target, sample, 2).item() == pytest.approx(plain)
    with pytest.raises(ValueError, match="4 query heads cannot share 3"):
        attention_kl(queries, *(torch.zeros(7, 3, 3, 4) for _ in range(2)), sample, 2)
