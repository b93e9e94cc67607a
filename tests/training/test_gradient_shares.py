"""Shares of the gradient against gradients worked out by hand, and every structured term in a real model."""

import numpy as np
import pytest
import torch
from torch import nn

from mtkv.distill.attention_kl import attention_kl
from mtkv.distill.kv_distance import kv_terms
from mtkv.distill.relation_kl import relation_terms
from mtkv.training.gradient_shares import balanced_loss, gradient_log, gradient_norm


def test_shares_of_known_gradients_and_the_graph_survives():
    a, b = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor(3.0))
    frozen = nn.Parameter(torch.tensor(5.0), requires_grad=False)
    parts = {
        "ce": 3 * a[0] + 4 * b,  # gradient (3, 0), 4: norm 5
        "key": (a.square()).sum() * 0.5 * 5**0.5,  # gradient √5·(1, 2): norm 5
        "entropy": torch.tensor(2.0),
        "kd": frozen * 2,
        "value": 0.0 * b,
    }
    found = gradient_log(parts, [a, b, frozen], matching=("key", "value", "attention"))
    shares = {"ce": 0.5, "key": 0.5, "entropy": 0, "kd": 0, "value": 0}
    cosine = 3 * 5**0.5 / 25  # (3, 0, 4) · √5·(1, 2, 0), each of norm 5; `value` has no gradient
    assert found == pytest.approx({f"share.{name}": share for name, share in shares.items()} | {"cos.key": cosine})
    (parts["ce"] + parts["key"]).backward()
    assert a.grad is not None


def test_cosines_are_those_of_the_whole_gradients():
    weights = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(5))]
    drawn = np.random.default_rng(0).normal(size=(3, 17))
    names = ("ce", "key", "value")
    toward = {name: torch.tensor(row, dtype=torch.float32) for name, row in zip(names, drawn, strict=True)}
    parts = {name: (weights[0].flatten() * t[:12]).sum() + (weights[1] * t[12:]).sum() for name, t in toward.items()}
    found = gradient_log(parts, weights, ["value", "key"])
    for name, row in zip(names[1:], drawn[1:], strict=True):
        cosine = drawn[0] @ row / np.linalg.norm(drawn[0]) / np.linalg.norm(row)
        assert found[f"cos.{name}"] == pytest.approx(cosine, rel=1e-5)


def test_nothing_to_share():
    parameter = nn.Parameter(torch.ones(2))
    assert gradient_log({"ce": torch.tensor(1.0), "key": parameter.sum()}, [parameter], ["key"]) == {
        "share.ce": 0.0,
        "share.key": 1.0,
    }
    assert gradient_log({"ce": parameter.sum()}, []) == {"share.ce": 0.0}
    assert gradient_log({"key": parameter.sum()}, [parameter], ["key"]) == {"share.key": 1.0}  # no cross-entropy
    assert gradient_norm(nn.Parameter(torch.ones(1)).sum(), [parameter]) == 0.0


@pytest.mark.parametrize("share", [0.3, 2.0])
def test_kv_gets_its_share_of_the_gradient_whatever_its_weight(share):
    a, b = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor(3.0))
    for weight in (1e-3, 7.0):
        ce, kv = 3 * a[0] + 4 * b, weight * (a.square()).sum() * 0.5  # gradients of norm 5 and weight·√5
        loss, factor = balanced_loss(ce + kv, kv, [a, b], share)
        assert factor == pytest.approx(share * 5 / (weight * 5**0.5))
        found = torch.autograd.grad(loss, [a, b], retain_graph=True)
        assert found[0].tolist() == pytest.approx([3 + share * 5 / 5**0.5, share * 10 / 5**0.5])
        assert found[1].item() == pytest.approx(4)
    alone, factor = balanced_loss(ce + kv, kv, [a, b], None)
    assert (alone.item(), factor) == (pytest.approx((ce + kv).item()), 1.0)
    assert balanced_loss(ce + 0 * kv, 0 * kv, [a, b], share)[1] == 1.0


def test_a_random_direction_has_the_norm_and_not_the_direction_of_the_kv_gradient():
    torch.manual_seed(0)
    a, b = nn.Parameter(torch.randn(4000)), nn.Parameter(torch.tensor(3.0))
    ce, kv = 5 * b, a.sum()
    loss, factor = balanced_loss(ce + kv, kv, [a, b], 0.4, random=True)
    assert loss.item() == pytest.approx((ce + factor * kv).item(), rel=1e-5)
    toward_a, toward_b = torch.autograd.grad(loss, [a, b])
    drawn = torch.cat([toward_a, (toward_b - 5)[None]])
    assert drawn.norm().item() == pytest.approx(0.4 * 5, rel=1e-4)
    assert abs(float(toward_a.mean() / toward_a.std())) < 0.1  # along the KV gradient all would be alike


def test_low_precision_gradients_are_added_up_in_float32():
    parameter = nn.Parameter(torch.full((3000,), 1.0, dtype=torch.bfloat16))
    assert gradient_norm(parameter.sum(), [parameter]) == pytest.approx(3000**0.5, rel=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_term_moves_the_weights_of_the_layers_in_range_only(build_model, checkpointing):
    model = build_model("llama").train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 64, (2, 6), generator=generator)
    seen = {}
    projections = [getattr(layer.self_attn, f"{kind}_proj") for layer in model.model.layers for kind in "kv"]
    for module in projections:  # setdefault: checkpointing runs the hooks again
        module.register_forward_hook(lambda module, _, output: seen.setdefault(module, [output]) and None)
    model(input_ids=ids, use_cache=False)
    kv = torch.stack([seen[module][0] for module in projections], dim=2).unflatten(2, (3, 2))
    sample = torch.tensor([0, 0, 0, 1, 1])
    student = kv[sample, torch.tensor([1, 2, 3, 2, 5])]
    target = torch.randn(student.shape, generator=generator)
    keys, target_keys = (x[:, :, 0].unflatten(-1, (2, 8)) for x in (student, target))
    queries = torch.randn(5, 3, 4, 8, generator=generator)
    weight = torch.tensor([1.0, 1.0, 0.0])
    terms = kv_terms(student, target, "smooth_l1", layer_weight=weight)
    relations = relation_terms(student, [target], torch.ones(2, 1), sample, weight)
    terms |= {f"relation_{name}": term for name, term in relations.items()}
    terms["attention"] = attention_kl(queries, keys, target_keys, sample, 2, weight)
    projection = {"relation_key": "k", "key": "k", "attention": "k"}
    for name, term in terms.items():
        layers = [getattr(layer.self_attn, f"{projection.get(name, 'v')}_proj").weight for layer in model.model.layers]
        assert [gradient_norm(term, [own]) > 0 for own in layers] == [True, True, False], name
    shares = gradient_log(terms, model.parameters())
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0
    sum(terms.values()).backward()
