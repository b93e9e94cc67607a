"""Token relations against a loop with scipy, and what must not change them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy, ortho_group

from mtkv.distill.relation_kl import relation_terms, unit_rms

NAMES = {0: "key", 1: "value"}


def packed(lengths, widths, layers=3, seed=0):
    """sample and one KV `[tokens, layers, 2, width]` per width, float64."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    size = int(sum(lengths))
    return sample, [torch.randn(size, layers, 2, w, generator=generator, dtype=torch.float64) for w in widths]


def routing(batch, teachers, *layers, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, teachers, *layers, generator=generator, dtype=torch.float64).softmax(1)


def reference(student, teachers, weights, sample, layer_share, sharpness=None, heads=1):
    """Token by token: softmax over the earlier tokens of the row, mixed teachers, KL from scipy; of each relation head apart."""

    def relation(x, token, earlier):
        s = np.sqrt(x.shape[-1]) if sharpness is None else sharpness
        return softmax(s * x[earlier] @ x[token] / x.shape[-1])

    totals = {}
    for kind, name in NAMES.items():
        totals[name] = 0.0
        for layer, share in enumerate(layer_share):
            for token in range(len(sample)):
                row = int(sample[token])
                earlier = [j for j in range(token + 1) if int(sample[j]) == row]
                alpha = weights[row] if weights.ndim == 2 else weights[row, :, layer]
                for head in range(heads):
                    own, *others = (np.split(x[:, layer, kind].numpy(), heads, -1)[head] for x in (student, *teachers))
                    mixed = sum(float(a) * relation(x, token, earlier) for a, x in zip(alpha, others, strict=True))
                    totals[name] += share * entropy(mixed, relation(own, token, earlier)) / len(sample) / heads
    return totals


def values(terms):
    return {name: term.item() for name, term in terms.items()}


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("sharpness", [None, 3.0])
@pytest.mark.parametrize("by_layer", [(), (3,)])
def test_equals_a_loop_with_scipy(by_layer, sharpness, heads):
    """MiniLMv2's relation heads cut models of other widths into as many parts, whatever heads of attention they have."""
    lengths = [4, 0, 1, 3]
    sample, (student, first, second) = packed(lengths, [12, 4, 8])
    weights = routing(len(lengths), 2, *by_layer)
    terms = relation_terms(student, [first, second], weights, sample, torch.tensor([1.0, 0.0, 3.0]), sharpness, heads)
    expected = reference(student, [first, second], weights, sample, [0.25, 0, 0.75], sharpness, heads)
    assert values(terms) == pytest.approx(expected)
    assert min(expected.values()) > 0.01


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_heads_may_be_permuted_and_spaces_turned(seed, lengths):
    sample, (student, teacher) = packed(lengths, [6, 8], layers=2, seed=seed)
    weights = routing(len(lengths), 1)
    plain = values(relation_terms(student, [teacher], weights, sample))
    turn = torch.from_numpy(ortho_group.rvs(8, random_state=seed))
    heads = teacher.unflatten(-1, (4, 2))[..., torch.randperm(4), :].flatten(-2)
    for changed in (heads, teacher @ turn):
        assert values(relation_terms(student, [changed], weights, sample)) == pytest.approx(plain, abs=1e-9)
    own_turn = torch.from_numpy(ortho_group.rvs(6, random_state=seed))
    assert values(relation_terms(student @ own_turn, [student], weights, sample)) == pytest.approx(
        {"key": 0, "value": 0}, abs=1e-9
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 10_000))
def test_a_batch_is_the_mean_of_its_rows_weighted_by_tokens(lengths, seed):
    sample, (student, teacher) = packed(lengths, [4, 6], layers=2, seed=seed)
    weights = routing(len(lengths), 1)
    together = values(relation_terms(student, [teacher], weights, sample))
    for name in NAMES.values():
        alone = [
            relation_terms(student[own], [teacher[own]], weights[row : row + 1], sample[own] * 0)[name].item()
            for row in range(len(lengths))
            for own in [sample == row]
        ]
        expected = np.dot(alone, lengths) / max(sum(lengths), 1)
        assert together[name] == pytest.approx(expected, abs=1e-12)


def test_gradient_in_range_only_and_for_the_router():
    sample, (student, first, second) = packed([3, 4], [6, 4, 8])
    weights = routing(2, 2).requires_grad_()
    student.requires_grad_()
    sum(relation_terms(student, [first, second], weights, sample, torch.tensor([0.0, 1.0, 1.0])).values()).backward()
    assert (student.grad[:, 0] == 0).all()
    assert (student.grad[:, 1:].abs().sum((0, 3)) > 0).all()
    assert (weights.grad.abs() > 0).all()


def test_gradient_equals_finite_differences():
    sample, (student, first, second) = packed([3, 1, 2], [3, 2, 4], layers=1)
    weights = routing(3, 2).requires_grad_()

    def total(x, alpha):
        return sum(relation_terms(x, [first, second], alpha, sample).values())

    assert torch.autograd.gradcheck(total, (student.requires_grad_(), weights))


@pytest.mark.parametrize("lengths", [[0, 0], [1, 1], [1, 0]])
def test_rows_without_a_pair_of_tokens_cost_nothing(lengths):
    sample, (student, teacher) = packed(lengths, [4, 4])
    student.requires_grad_()
    terms = relation_terms(student, [teacher], routing(2, 1), sample)
    assert values(terms) == {"key": 0, "value": 0}
    sum(terms.values()).backward()
    assert (student.grad == 0).all()


def test_extreme_inputs_and_autocast_stay_finite_and_precise():
    sample, (student, teacher) = packed([5, 2], [4, 4])
    student, teacher, weights = student.float(), teacher.float(), routing(2, 1).float()
    huge = (1e4 * student).requires_grad_()
    terms = relation_terms(huge, [1e4 * teacher], weights, sample)
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert huge.grad.isfinite().all()
    plain = values(relation_terms(student, [teacher], weights, sample))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert values(relation_terms(student, [teacher], weights, sample)) == plain


def test_unit_rms_is_one_for_each_layer_and_kind_and_its_scale_is_detached():
    _, (x,) = packed([5], [4])
    x = (x * torch.arange(1.0, 7).reshape(3, 2, 1)).requires_grad_()
    scaled = unit_rms(x)
    assert np.allclose(np.sqrt(np.square(scaled.detach().numpy()).mean(axis=(0, 3))), 1)
    scaled.sum().backward()
    assert torch.allclose(x.grad, (scaled / x).detach())
    assert unit_rms(x[:0]).shape == x[:0].shape
