"""Loss terms against numpy, and their invariances."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

from mtkv.distill.kv_distance import DISTANCES, kv_terms


def pair(tokens=5, layers=3, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, tokens, layers, 2, width, generator=generator, dtype=torch.float64)


def test_mse_and_l1_equal_numpy_and_keys_are_not_values():
    student, target = pair()
    difference = (student - target).numpy()
    terms = kv_terms(student, target, "mse")
    assert terms["key"].item() == pytest.approx(np.square(difference[:, :, 0]).mean())
    assert terms["value"].item() == pytest.approx(np.square(difference[:, :, 1]).mean())
    assert kv_terms(student, target, "l1")["value"].item() == pytest.approx(np.abs(difference[:, :, 1]).mean())


def test_cosine_equals_scipy():
    student, target = pair()
    flat = zip(student.reshape(-1, 4).numpy(), target.reshape(-1, 4).numpy(), strict=True)
    assert kv_terms(student, target, "mse")["cosine"].item() == pytest.approx(np.mean([cosine(a, b) for a, b in flat]))


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_mean_keeps_its_meaning_when_tokens_layers_or_width_are_repeated(distance):
    student, target = pair()
    plain = kv_terms(student, target, distance)
    for repeats in ((3, 1, 1, 1), (1, 2, 1, 1), (1, 1, 1, 4)):
        repeated = kv_terms(student.repeat(repeats), target.repeat(repeats), distance)
        for name in plain:
            assert repeated[name].item() == pytest.approx(plain[name].item())


def test_equal_kv_costs_nothing_and_no_token_gives_zero_with_a_gradient_path():
    student, _ = pair()
    assert all(term.item() == pytest.approx(0, abs=1e-12) for term in kv_terms(student, student, "smooth_l1").values())
    empty = torch.zeros(0, 3, 2, 4, requires_grad=True)
    terms = kv_terms(empty, empty.detach(), "mse")
    assert sum(term.item() for term in terms.values()) == 0
    sum(terms.values()).backward()


def test_the_cosine_leaves_out_a_kind_that_does_not_count():
    student, target = pair()
    keys_only = kv_terms(student, target, "mse", kinds=[0])["cosine"]
    flat = zip(student[:, :, 0].reshape(-1, 4).numpy(), target[:, :, 0].reshape(-1, 4).numpy(), strict=True)
    assert keys_only.item() == pytest.approx(np.mean([cosine(a, b) for a, b in flat]))
    assert kv_terms(student, target, "mse", kinds=[])["cosine"].item() == 0


@pytest.mark.parametrize("weight", [[1, 1, 1], [0, 1, 0], [0.5, 0, 2]])
@pytest.mark.parametrize("distance", DISTANCES)
def test_layer_weights_make_a_weighted_mean(distance, weight):
    student, target = pair()
    elements = {
        "mse": lambda a, b: (a - b) ** 2,
        "relation": lambda a, b: (a - b) ** 2,  # its keys and values are those of mtkv.distill.relation_kl
        "l1": lambda a, b: abs(a - b),
        "smooth_l1": lambda a, b: 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5,
    }[distance]
    tokens, layers, _, width = student.shape
    expected = {"key": 0.0, "value": 0.0, "cosine": 0.0}
    for layer in range(layers):
        share = weight[layer] / sum(weight)
        for token in range(tokens):
            for kind, name in enumerate(("key", "value")):
                a, b = student[token, layer, kind].tolist(), target[token, layer, kind].tolist()
                expected[name] += share / tokens / width * sum(elements(x, y) for x, y in zip(a, b, strict=True))
                expected["cosine"] += share / tokens / 2 * cosine(a, b)
    terms = kv_terms(student, target, distance, layer_weight=torch.tensor(weight, dtype=torch.float64))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)


def test_a_layer_that_is_switched_off_has_no_gradient_even_when_it_is_broken():
    student, target = pair()
    student[:, 1] = float("nan")
    student.requires_grad_()
    sum(kv_terms(student, target, "mse", layer_weight=torch.tensor([1.0, 0.0, 1.0])).values()).backward()
    assert (student.grad[:, [0, 2]] != 0).all()
    assert (student.grad[:, 1] == 0).all()
    nothing = kv_terms(student, target, "mse", layer_weight=torch.zeros(3))
    assert sum(nothing.values()).item() == 0
    sum(nothing.values()).backward()
    with pytest.raises(ValueError, match="3 layers"):
        kv_terms(student, target, "mse", layer_weight=torch.ones(2))


def test_autocast_does_not_round_the_terms():
    student, target = pair().float()
    plain = kv_terms(student, target, "mse")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kv_terms(student, target, "mse") == plain
