"""Routers and fusion: brute force, and the properties every router has."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import kstest

from mtkv.config.fusion import FusionConfig
from mtkv.fuse.routers import ROUTERS, build_router, fuse, task_number

DEFAULTS = {
    "weights": None,
    "temperature": 1.0,
    "hidden": 8,
    "similarity": "cosine",
    "prototypes": "mean",
    "router": "mlp",
    "per_layer": False,
    "by_task": None,
}
TYPES = ("mlp", "gate", "attention")


TASK_NAMES = ("sums", "stories")


def config(strategy, teachers=0, **fields):
    if strategy == "task" and "by_task" not in fields:
        last = [0.0] * (teachers - 1) + [1.0]
        fields["by_task"] = {"sums": last, "stories": last[::-1]}
    return SimpleNamespace(**({"strategy": strategy} | DEFAULTS | fields))


def inputs(batch, teachers, *shape, seed=0):
    """query, prototypes and the context of every strategy"""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, *shape, generator=generator)
    prototypes = torch.randn(batch, teachers, *shape, generator=generator)
    noted = {"likelihood": -3 * torch.rand(batch, teachers, generator=generator)}
    noted["entropy"] = 2 * torch.rand(batch, teachers, generator=generator)
    task = torch.tensor([task_number(TASK_NAMES[row % 2]) for row in range(batch)])
    return query, prototypes, noted | {"row_seed": torch.arange(batch) + 100 * seed, "task": task}


def trained(router, query, prototypes):
    """A learnable router after a few steps towards the first teacher, so that its weights differ."""
    optimizer = torch.optim.SGD(router.parameters(), lr=1.0)
    for _ in range(3):  # a zero last layer passes no gradient on before its first step
        optimizer.zero_grad()
        costs = torch.arange(float(prototypes.shape[1])).view(-1, *[1] * (query.dim() - 2))
        (router(query, prototypes) * costs).sum().backward()
        optimizer.step()
    return router


def test_the_defaults_of_these_tests_are_the_config_fields():
    assert {name: getattr(FusionConfig(), name) for name in DEFAULTS} == DEFAULTS | {"hidden": 32}


@pytest.mark.parametrize("teachers", [1, 2, 3, 5])
@pytest.mark.parametrize("strategy", ROUTERS)
def test_weights_are_distributions_for_any_number_of_teachers(strategy, teachers):
    torch.manual_seed(0)
    query, prototypes, context = inputs(4, teachers, 7)
    weights = build_router(config(strategy, teachers), teachers, 7)(query, prototypes, **context)
    assert weights.shape == (4, teachers)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    assert (weights >= 0).all()


def test_fixed_weights_are_the_given_ones_or_uniform():
    query, prototypes = torch.zeros(2, 3), torch.zeros(2, 2, 3)
    assert build_router(config("fixed", weights=[0.7, 0.3]), 2, 3)(query, prototypes)[1].tolist() == pytest.approx(
        [0.7, 0.3]
    )
    assert build_router(config("fixed"), 2, 3)(query, prototypes)[0].tolist() == [0.5, 0.5]


def alike(name, q, p):
    """Similarity of two vectors, in plain Python."""
    inner = sum(a * b for a, b in zip(q, p, strict=True))
    if name == "dot":
        return inner / len(q) ** 0.5
    if name == "l2":
        return -((sum((a - b) ** 2 for a, b in zip(q, p, strict=True)) / len(q)) ** 0.5)
    return inner / (sum(a * a for a in q) * sum(b * b for b in p)) ** 0.5


@pytest.mark.parametrize("name", ["cosine", "dot", "l2"])
def test_similarity_is_a_softmax_of_the_named_measure_and_the_best_centroid_counts(name):
    query, prototypes, _ = inputs(4, 3, 5)
    router = build_router(config("similarity", similarity=name, temperature=0.3), 3, 5)
    centroids = torch.stack([prototypes, prototypes.flip(0), prototypes * 2 + 1], 2)
    single, several = router(query, prototypes), router(query, centroids)
    for row in range(4):
        q = query[row].tolist()
        scores = [alike(name, q, prototypes[row, i].tolist()) / 0.3 for i in range(3)]
        assert single[row].tolist() == pytest.approx(softmax(scores).tolist(), rel=1e-4)
        best = [max(alike(name, q, centroids[row, i, c].tolist()) for c in range(3)) / 0.3 for i in range(3)]
        assert several[row].tolist() == pytest.approx(softmax(best).tolist(), rel=1e-4)


@pytest.mark.parametrize("strategy", ["similarity", "teacher_ce", "confidence", "oracle"])
def test_permuting_teachers_permutes_weights(strategy):
    (query, prototypes, context), order = inputs(6, 3, 5), [2, 0, 1]
    context["likelihood"][0] = -1.0  # a tie
    router = build_router(config(strategy), 3, 5)
    moved = context | {name: context[name][:, order] for name in ("likelihood", "entropy")}
    torch.testing.assert_close(
        router(query, prototypes, **context)[:, order], router(query, prototypes[:, order], **moved)
    )


def test_teacher_ce_is_a_softmax_of_likelihoods_and_oracle_its_cold_limit():
    query, prototypes, context = inputs(5, 3, 4)
    context["likelihood"][0, 1:] = -0.1
    found = build_router(config("teacher_ce", temperature=0.5), 3, 4)(query, prototypes, **context)
    want = torch.from_numpy(softmax(context["likelihood"].numpy() / 0.5, axis=1))
    torch.testing.assert_close(found, want)
    cold = build_router(config("teacher_ce", temperature=1e-5), 3, 4)(query, prototypes, **context)
    oracle = build_router(config("oracle"), 3, 4)(query, prototypes, **context)
    torch.testing.assert_close(oracle, cold)
    assert oracle[0].tolist() == [0, 0.5, 0.5]
    assert oracle[1].argmax() == context["likelihood"][1].argmax()


@pytest.mark.parametrize("temperature", [1.0, 0.1, 7.0])
def test_confidence_is_a_softmax_of_minus_the_entropies(temperature):
    query, prototypes, context = inputs(5, 3, 4)
    found = build_router(config("confidence", temperature=temperature), 3, 4)(query, prototypes, **context)
    for weights, row in zip(found.tolist(), context["entropy"].tolist(), strict=True):
        shares = [math.exp(-nats / temperature) for nats in row]
        assert weights == pytest.approx([share / sum(shares) for share in shares], rel=1e-5)
        assert np.argmax(weights) == np.argmin(row)
    blind = context | {"likelihood": torch.full((5, 3), torch.nan)}  # sure and wrong is sure
    assert torch.equal(
        build_router(config("confidence", temperature=temperature), 3, 4)(query, prototypes, **blind), found
    )


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        ("teacher_ce", "likelihood"),
        ("confidence", "entropy"),
        ("oracle", "likelihood"),
        ("random", "row_seed"),
    ],
)
def test_a_router_without_its_input_says_which_one_is_missing(strategy, name):
    with pytest.raises(ValueError, match=f"{strategy}.*{name}"):
        build_router(config(strategy), 2, 3)(torch.zeros(2, 3), torch.zeros(2, 2, 3))


def test_random_belongs_to_the_row_and_is_a_flat_dirichlet_or_a_fair_die():
    query, prototypes, _ = inputs(3000, 3, 1)
    seeds, order = torch.arange(3000), torch.randperm(3000)
    router = build_router(config("random"), 3, 1)
    weights = router(query, prototypes, row_seed=seeds)
    torch.manual_seed(1)  # the global generator plays no part
    torch.testing.assert_close(router(query, prototypes, row_seed=seeds[order]), weights[order])
    for teacher in range(3):  # each weight of a flat Dirichlet over 3 is Beta(1, 2)
        assert kstest(weights[:, teacher].numpy(), "beta", args=(1, 2)).pvalue > 0.01
    one_hot = build_router(config("random", temperature=1e-6), 3, 1)(query, prototypes, row_seed=seeds)
    assert (one_hot.amax(1) > 0.999).float().mean() > 0.999
    assert ((one_hot.sum(0) - 1000).abs() < 5 * (3000 * 2 / 9) ** 0.5).all()


@pytest.mark.parametrize("shape", [(5,), (4, 5)], ids=["per row", "per layer"])
@pytest.mark.parametrize("router", TYPES)
def test_learnable_starts_uniform_and_its_gradient_reaches_every_weight(router, shape):
    torch.manual_seed(0)
    layers = shape[:-1]
    built = build_router(config("learnable", router=router, per_layer=bool(layers)), 3, *(layers or (1,)), 5)
    query, prototypes, _ = inputs(6, 3, *shape)
    expected = (6, 3, *layers)
    torch.testing.assert_close(built(query, prototypes), torch.full(expected, 1 / 3))
    weights = trained(built, query, prototypes)(query, prototypes)
    assert all(parameter.grad.abs().max() > 0 for parameter in built.parameters())
    assert weights[:, 0].mean() > 0.5
    torch.testing.assert_close(weights.sum(1), torch.ones(6, *layers))


@pytest.mark.parametrize("router", TYPES)
def test_each_layer_has_weights_from_its_own_query(router):
    query, prototypes, _ = inputs(6, 3, 4, 5)
    built = trained(build_router(config("learnable", router=router, per_layer=True), 3, 4, 5), query, prototypes)
    changed, changed_prototypes = query.clone(), prototypes.clone()
    changed[:, 2] += torch.randn(6, 5)
    changed_prototypes[:, :, 2] += 1
    moved = (built(query, prototypes) != built(changed, changed_prototypes)).any(1).any(0)
    assert moved.tolist() == [False, False, True, False]


def test_only_attention_reads_prototypes_and_can_do_without():
    query, prototypes, _ = inputs(6, 3, 5)
    for router in TYPES:
        built = trained(build_router(config("learnable", router=router), 3, 5), query, prototypes)
        assert torch.equal(built(query, prototypes), built(query, prototypes + torch.randn(5))) == (
            router != "attention"
        )
        assert built(query).shape == (6, 3)
        centroids = prototypes[:, :, None].expand(-1, -1, 4, -1)
        torch.testing.assert_close(built(query, centroids), built(query, prototypes))


def test_gate_weights_are_sigmoids_over_their_sum_and_temperature_sharpens():
    query, prototypes, _ = inputs(6, 3, 5)
    built = trained(build_router(config("learnable", router="gate"), 3, 5), query, prototypes)
    scorer = built.scorer
    gates = torch.sigmoid(scorer.norm(query) @ scorer.gate.weight[0] + scorer.gate.bias[0])
    torch.testing.assert_close(built(query, prototypes), gates / gates.sum(1, keepdim=True))
    built.temperature = 0.01
    assert (built(query, prototypes).amax(1) > 0.9).all()


def test_a_query_of_another_width_and_an_unknown_type_are_refused():
    with pytest.raises(ValueError, match=r"\[batch, 5\], got \[2, 6\]"):
        build_router(config("learnable"), 3, 5)(torch.zeros(2, 6), torch.zeros(2, 3, 6))
    with pytest.raises(ValueError, match="mlp, gate, attention"):
        build_router(config("learnable", router="moe"), 3, 5)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.booleans(), st.integers(0, 100))
def test_fusing_equals_a_loop_and_identical_kvs_are_unchanged(teachers, batch, per_layer, seed):
    generator = torch.Generator().manual_seed(seed)
    kvs = torch.randn(9, teachers, 3, 2, 4, generator=generator)
    weights = torch.rand(batch, teachers, *[3] * per_layer, generator=generator).softmax(1)
    sample = torch.randint(batch, (9,), generator=generator)
    fused = fuse(kvs, weights, sample)
    for n in range(9):
        for layer in range(3):
            own = weights[sample[n], :, layer] if per_layer else weights[sample[n]]
            torch.testing.assert_close(fused[n, layer], sum(own[i] * kvs[n, i, layer] for i in range(teachers)))
    same = kvs[:, :1].expand(-1, teachers, -1, -1, -1)
    torch.testing.assert_close(fuse(same, weights, sample), kvs[:, 0])


def test_task_router_gives_each_row_the_weights_of_its_source():
    router = build_router(config("task", by_task={"sums": [0.75, 0.25], "stories": [0.0, 1.0]}), 2, 1)
    query, prototypes, context = inputs(3, 2, 4)
    assert router(query, prototypes, **context).tolist() == [[0.75, 0.25], [0.0, 1.0], [0.75, 0.25]]
    strange = context | {"task": torch.tensor([task_number("riddles")])}
    with pytest.raises(ValueError, match="no weights for the training source"):
        router(query[:1], prototypes[:1], **strange)
    with pytest.raises(ValueError, match="needs `task`"):
        router(query, prototypes)
