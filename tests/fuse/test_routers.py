"""Routers and fusion: brute force, and the properties every router has."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from mtkv.fuse.entropy import entropy, entropy_loss
from mtkv.fuse.routers import ROUTERS, build_router, fuse, pool


def config(strategy, **fields):
    return SimpleNamespace(**({"strategy": strategy, "weights": None, "temperature": 1.0, "hidden": 8} | fields))


@pytest.mark.parametrize("teachers", [1, 2, 3, 5])
@pytest.mark.parametrize("strategy", ROUTERS)
def test_weights_are_distributions_for_any_number_of_teachers(strategy, teachers):
    torch.manual_seed(0)
    weights = build_router(config(strategy), teachers, 7)(torch.randn(4, 7), torch.randn(4, teachers, 7))
    assert weights.shape == (4, teachers)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4))
    assert (weights >= 0).all()


def test_fixed_weights_are_the_given_ones_or_uniform():
    query, prototypes = torch.zeros(2, 3), torch.zeros(2, 2, 3)
    assert build_router(config("fixed", weights=[0.7, 0.3]), 2, 3)(query, prototypes)[1].tolist() == pytest.approx(
        [0.7, 0.3]
    )
    assert build_router(config("fixed"), 2, 3)(query, prototypes)[0].tolist() == [0.5, 0.5]


def test_similarity_prefers_the_prototype_that_points_the_same_way():
    query = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    prototypes = torch.tensor([[[5.0, 0.0], [0.0, 1.0]], [[5.0, 0.0], [0.0, 1.0]]])
    weights = build_router(config("similarity", temperature=0.5), 2, 2)(query, prototypes)
    want = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).div(0.5).softmax(-1)
    torch.testing.assert_close(weights, want)


@pytest.mark.parametrize("strategy", ["similarity"])
def test_permuting_teachers_permutes_weights(strategy):
    query, prototypes, order = torch.randn(6, 5), torch.randn(6, 3, 5), [2, 0, 1]
    router = build_router(config(strategy), 3, 5)
    torch.testing.assert_close(router(query, prototypes)[:, order], router(query, prototypes[:, order]))


def test_learnable_starts_uniform_and_its_gradient_reaches_every_weight():
    router = build_router(config("learnable"), 3, 5)
    query, prototypes = torch.randn(6, 5), torch.randn(6, 3, 5)
    torch.testing.assert_close(router(query, prototypes), torch.full((6, 3), 1 / 3))
    optimizer = torch.optim.SGD(router.parameters(), lr=1.0)
    for _ in range(3):  # the zero output layer passes no gradient on before its first step
        optimizer.zero_grad()
        (router(query, prototypes) * torch.arange(3.0)).sum().backward()
        optimizer.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in router.parameters())
    assert router(query, prototypes)[:, 0].mean() > 0.5


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 100))
def test_fusing_equals_a_loop_and_identical_kvs_are_unchanged(teachers, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    kvs = torch.randn(9, teachers, 3, 2, 4, generator=generator)
    weights = torch.rand(batch, teachers, generator=generator).softmax(-1)
    sample = torch.randint(batch, (9,), generator=generator)
    fused = fuse(kvs, weights, sample)
    for n in range(9):
        want = sum(weights[sample[n], i] * kvs[n, i] for i in range(teachers))
        torch.testing.assert_close(fused[n], want)
    same = kvs[:, :1].expand(-1, teachers, -1, -1, -1)
    torch.testing.assert_close(fuse(same, weights, sample), kvs[:, 0])


def test_pool_is_the_mean_over_a_samples_tokens_and_zero_without_tokens():
    x, sample = torch.randn(5, 2, 3), torch.tensor([0, 0, 2, 2, 2])
    pooled = pool(x, sample, 4)
    torch.testing.assert_close(pooled[0], x[:2].mean(0).flatten())
    torch.testing.assert_close(pooled[2], x[2:].mean(0).flatten())
    assert pooled[1].abs().sum() == pooled[3].abs().sum() == 0


def test_entropy_equals_scipy_and_its_sign_follows_the_target():
    weights = torch.tensor([[0.2, 0.8], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    assert entropy(weights).item() == pytest.approx(float(scipy_entropy(weights.detach().numpy(), axis=1).mean()))
    assert entropy_loss(weights, "specialized", 0.1).item() == pytest.approx(0.1 * entropy(weights).item())
    assert entropy_loss(weights, "diverse", 0.1).item() == pytest.approx(-0.1 * entropy(weights).item())
    entropy(weights).backward()
    assert torch.isfinite(weights.grad).all()
