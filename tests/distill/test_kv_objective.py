"""The KV loss of an arm, every term added up by loops over tokens, layers, kinds and teachers in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from classic_kv import classic

from mtkv.align.closed_form_maps import FrozenMap, KVMap
from mtkv.config.kv import KVConfig
from mtkv.distill.kv_objective import SMALLEST_SPREAD, KVObjective
from mtkv.kv.shards import KEY, VALUE

LAYERS, WIDTH, HEADS, WIDTHS = 3, 4, 2, (6, 5)
SAMPLE = [0, 0, 0, 1, 3, 3]  # row 2 has no supervised token
BATCH = 4
LIKELIHOOD = torch.tensor([[-0.2, -2.0], [-1.5, -0.3], [-1.0, -1.0], [-3.0, -0.1]])
LOSS = {"lambda_k": 0.7, "lambda_v": 1.3, "beta": 0.4, "gamma": 0.2}
DISTANCE = {
    "mse": lambda x: x * x,
    "l1": abs,
    "smooth_l1": lambda x: x * x / 2 if abs(x) < 1 else abs(x) - 0.5,
}
KINDS = {"key": KEY, "value": VALUE}


def random(*shape, seed=0, positive=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.abs() + 0.3 if positive else x


def kv_map(width, seed):
    shapes = {"weight": (width, WIDTH), "x_mean": (width,), "y_mean": (WIDTH,)}
    tensors = {name: random(LAYERS, 2, *shape, seed=seed) for name, shape in shapes.items()}
    spreads = {"x_scale": (), "y_scale": (), "scale": (), "channel_std": (WIDTH,), "x_channel_std": (width,)}
    tensors |= {
        name: random(LAYERS, 2, *shape, seed=seed + number, positive=True)
        for number, (name, shape) in enumerate(spreads.items())
    }
    return KVMap(**tensors, layer_weights=torch.eye(LAYERS))


MAPS = [kv_map(width, 10 * number) for number, width in enumerate(WIDTHS)]
STUDENT = random(len(SAMPLE), LAYERS, 2, WIDTH, seed=1)
TEACHERS = [random(len(SAMPLE), LAYERS, 2, width, seed=2) * 1.7 + 0.5 for width in WIDTHS]
QUERIES = random(len(SAMPLE), LAYERS, 2 * HEADS, WIDTH // HEADS, seed=3)
SCALING = 0.9


def make(mapped=False, **changes):
    torch.manual_seed(5)
    config = {"teachers": ["one", "two"], "fusion": {"strategy": "teacher_ce", "temperature": 0.8}, "loss": LOSS}
    module = KVObjective(KVConfig.model_validate(classic(config | changes)), MAPS, (HEADS, (1, 1)), mapped)
    for (
        parameter
    ) in module.parameters():  # as they start, maps lie at the smallest spread and routers give equal weights
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def run(module, teachers=TEACHERS):
    return module(
        STUDENT, torch.tensor(SAMPLE), teachers, BATCH, queries=QUERIES, scaling=SCALING, likelihood=LIKELIHOOD
    )


def double(x):
    return x.detach().double().numpy()


def likelihood_weights():
    """α [batch, teachers, layers]: softmax of the teachers' likelihoods at temperature 0.8."""
    exponential = np.exp(LIKELIHOOD.double().numpy() / 0.8)
    return np.repeat((exponential / exponential.sum(1, keepdims=True))[..., None], LAYERS, 2)


PLACES = [(n, layer, kind) for n in range(len(SAMPLE)) for layer in range(LAYERS) for kind in range(2)]


def student_and_units(unit="layer"):
    """The student centred on the mean of the maps' means in the mean of their spreads; each teacher in its own unit."""
    y_mean = sum(double(m.y_mean) for m in MAPS) / 2
    y_scale = sum(double(m.y_scale) for m in MAPS) / 2
    student, units = np.zeros(STUDENT.shape), [np.zeros(x.shape) for x in TEACHERS]
    for n, layer, kind in PLACES:
        at = (layer, kind)
        student[n][at] = (double(STUDENT)[n][at] - y_mean[at]) / y_scale[at]
        for found, x, m in zip(units, TEACHERS, MAPS, strict=True):
            found[n][at] = (double(x)[n][at] - double(m.x_mean)[at]) / double(m.x_scale)[at]
            found[n][at] /= double(m.x_channel_std)[at] if unit == "channel" else 1
    return student, units


def linear(adapter, x):
    weight, bias = double(adapter.weight), double(adapter.bias)
    return np.stack(
        [[[x[n, i, k] @ weight[i, k] + bias[i, k] for k in range(2)] for i in range(LAYERS)] for n in range(len(x))]
    )


def spread(target):
    """Root mean square over tokens and channels `[layers, 2, 1]`, not below the smallest."""
    return np.maximum(np.sqrt((target**2).mean((0, 3))), SMALLEST_SPREAD)[..., None]


def terms(comparisons, distance, layers):
    """key, value and cosine; `comparisons`: student, target and weight `[tokens, layers]` of each pair that is compared."""
    found = dict.fromkeys(("key", "value", "cosine"), 0.0)
    for student, target, weight in comparisons:
        for n in range(len(student)):
            for layer in layers:
                share = weight[n, layer] / len(student) / len(layers)
                for name, kind in KINDS.items():
                    mine, theirs = student[n, layer, kind], target[n, layer, kind]
                    each = [DISTANCE[distance](a - b) for a, b in zip(mine, theirs, strict=True)]
                    found[name] += share * sum(each) / len(each)
                    cosine = mine @ theirs / math.sqrt(mine @ mine * (theirs @ theirs))
                    found["cosine"] += share / 2 * (1 - cosine)
    return found


def fused(weights, unit="layer"):
    """Target in the student's space without its mean, and its scale, both `[tokens, layers, 2, width]`."""
    target, scale = np.zeros(STUDENT.shape), np.zeros(STUDENT.shape)
    for n, layer, kind in PLACES:
        at = (layer, kind)
        for i, (x, m) in enumerate(zip(TEACHERS, MAPS, strict=True)):
            share = weights[SAMPLE[n], i, layer]
            target[n][at] += share * (double(x)[n][at] - double(m.x_mean)[at]) @ double(m.weight)[at]
            scale[n][at] += share * double(m.scale)[at] * (double(m.channel_std)[at] if unit == "channel" else 1)
    return target, scale


def attention(target_keys, layers):
    """Mean KL in nats between the attention of the student's queries to the target's keys and to its own, causal within a row."""
    total, own = 0.0, double(STUDENT)[:, :, KEY]
    for n, layer in [(n, layer) for n in range(len(SAMPLE)) for layer in layers]:
        seen = [j for j in range(n + 1) if SAMPLE[j] == SAMPLE[n]]
        for head in range(2 * HEADS):
            part = slice(head // 2 * (WIDTH // HEADS), (head // 2 + 1) * (WIDTH // HEADS))
            logits = [
                np.array([double(QUERIES)[n, layer, head] @ keys[j, layer, part] * SCALING for j in seen])
                for keys in (own, target_keys)
            ]
            log_own, log_target = (x - np.log(np.exp(x).sum()) for x in logits)
            total += (np.exp(log_target) * (log_target - log_own)).sum()
    return total / (len(SAMPLE) * 2 * HEADS * len(layers))


def entropy(weights):
    return float(-(weights * np.log(weights)).sum(1).mean())


def check(got, want, weights, layers=range(LAYERS)):
    """Attention is always to the keys that the closed-form maps give."""
    y_mean = sum(double(m.y_mean) for m in MAPS) / 2
    want["attention"] = attention((fused(weights)[0] + y_mean)[:, :, KEY], layers)
    for name, value in want.items():
        assert float(got[name].detach()) == pytest.approx(value, rel=1e-4, abs=1e-6), name
    shown = double(got["weights"])
    np.testing.assert_allclose(shown, weights if shown.ndim == 3 else weights[:, :, 0], atol=1e-6)
    assert float(got["entropy"].detach()) == pytest.approx(entropy(weights), rel=1e-5)
    factors = dict(zip(("key", "value", "cosine", "attention"), LOSS.values(), strict=True))
    kv = sum(factor * want[name] for name, factor in factors.items() if name in want)
    if "part.entropy" in got:
        kv += float(got["part.entropy"].detach())
    assert float(got["kv"].detach()) == pytest.approx(kv, rel=1e-4)


def learned_weights(module):
    """α of the module's router for the mean of each row, both sides divided by the mean of the maps' scales; by loops up to the router."""
    scale = sum(double(m.scale) for m in MAPS) / 2
    y_mean = sum(double(m.y_mean) for m in MAPS) / 2
    query, prototypes = np.zeros((BATCH, LAYERS, 2 * WIDTH)), np.zeros((BATCH, 2, LAYERS, 2 * WIDTH))
    for n, layer, kind in PLACES:
        row, at, part = SAMPLE[n], (layer, kind), slice(kind * WIDTH, (kind + 1) * WIDTH)
        share = 1 / SAMPLE.count(row) / scale[at]
        query[row, layer, part] += share * (double(STUDENT)[n][at] - y_mean[at])
        for i, (x, m) in enumerate(zip(TEACHERS, MAPS, strict=True)):
            mapped = (double(x)[n][at] - double(m.x_mean)[at]) @ double(m.weight)[at]
            prototypes[row, i, layer, part] += share * mapped
    return double(module.router(torch.from_numpy(query).float(), torch.from_numpy(prototypes).float()))


@pytest.mark.parametrize("unit", ["layer", "channel"])
@pytest.mark.parametrize("layers", ["all", [1, 2]])
@pytest.mark.parametrize("distance", DISTANCE)
def test_closed_form_maps_are_compared_in_the_scale_that_is_mixed_as_the_teachers_are(distance, layers, unit):
    weights, counted = likelihood_weights(), range(3) if layers == "all" else [1, 2]
    got = run(make(loss=LOSS | {"distance": distance, "layers": layers, "unit": unit}))
    target, scale = fused(weights, unit)
    y_mean = sum(double(m.y_mean) for m in MAPS) / 2
    scaled = [x / scale for x in (double(STUDENT) - y_mean, target)]
    want = terms([(*scaled, np.ones((len(SAMPLE), LAYERS)))], distance, counted)
    check(got, want, weights, counted)
    np.testing.assert_allclose(double(got["fused"]), target + y_mean, atol=1e-5)
    assert np.ptp(weights[:, 0, 0]) > 0.5  # unequal from row to row


def test_the_mapped_tier_gives_the_terms_of_the_raw_one():
    raw, mapped = run(make()), run(make(mapped=True), [m.target(x) for m, x in zip(MAPS, TEACHERS, strict=True)])
    for name in raw:
        torch.testing.assert_close(mapped[name], raw[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("unit", ["layer", "channel"])
@pytest.mark.parametrize("distance", DISTANCE)
@pytest.mark.parametrize("map_name", ["linear", "two_step", "elastic"])
def test_a_map_on_the_student_turns_it_to_each_teacher_which_counts_by_its_weight(map_name, distance, unit):
    align = {"map": map_name, "side": "student"}
    module = make(align=align, loss=LOSS | {"distance": distance, "layers": [0, 1], "unit": unit})
    student, units = student_and_units(unit)
    weights = likelihood_weights()
    got = run(module)
    turned = [
        linear(adapter, student) if map_name == "linear" else double(adapter.double()(torch.from_numpy(student)))
        for adapter in module.adapters
    ]
    pairs = [(mine, unit, weights[SAMPLE, i]) for i, (mine, unit) in enumerate(zip(turned, units, strict=True))]
    check(got, terms(pairs, distance, [0, 1]), weights, [0, 1])


def test_a_channel_that_hardly_moves_is_not_blown_up():
    still = replace(MAPS[0], x_channel_std=torch.zeros_like(MAPS[0].x_channel_std))
    found = FrozenMap(still).unit(TEACHERS[0], "channel")
    torch.testing.assert_close(found, FrozenMap(still).unit(TEACHERS[0]) * 100)


def test_z_space_compares_both_sides_in_units_of_the_teachers_spread():
    module = make(align={"map": "z_space", "shared_width": 3})
    student, units = student_and_units()
    weights, pairs = likelihood_weights(), []
    for i, (adapter, unit) in enumerate(zip(module.adapters, units, strict=True)):
        mine, theirs = linear(adapter.student, student), linear(adapter.teacher, unit)
        pairs.append((mine / spread(theirs), theirs / spread(theirs), weights[SAMPLE, i]))
    check(run(module), terms(pairs, "mse", range(3)), weights)


@pytest.mark.parametrize("size", [0.5, 1e-3])
def test_a_trained_map_on_the_teacher_is_fused_and_then_compared_in_units_of_its_spread(size):
    module = make(align={"map": "linear"})
    with torch.no_grad():
        for parameter in module.adapters.parameters():
            parameter.mul_(size / 0.5)
    student, units = student_and_units()
    weights = likelihood_weights()
    mapped = [linear(adapter, unit) for adapter, unit in zip(module.adapters, units, strict=True)]
    target = sum(weights[SAMPLE, i][..., None, None] * x for i, x in enumerate(mapped))
    assert (np.sqrt((target**2).mean((0, 3))) < SMALLEST_SPREAD).all() == (size < 0.1)
    pair = (student / spread(target), target / spread(target), np.ones((len(SAMPLE), LAYERS)))
    check(run(module), terms([pair], "mse", range(3)), weights)


PER_LAYER = {"strategy": "learnable", "per_layer": True, "temperature": 0.3}


@pytest.mark.parametrize("sign", [1, -1])
def test_weights_per_layer_fuse_scale_and_count_layer_by_layer(sign):
    regulariser = {"target": "specialized" if sign > 0 else "diverse", "strength": 0.6}
    module = make(fusion=PER_LAYER | {"entropy": regulariser})
    weights = learned_weights(module)
    assert np.ptp(weights, 2).max() > 0.01  # layers differ
    target, scale = fused(weights)
    y_mean = sum(double(m.y_mean) for m in MAPS) / 2
    pair = [x / scale for x in (double(STUDENT) - y_mean, target)]
    want = terms([(*pair, np.ones((len(SAMPLE), LAYERS)))], "mse", range(3))
    want["part.entropy"] = sign * 0.6 * entropy(weights)
    check(run(module), want, weights)


def test_weights_per_layer_weigh_the_terms_of_a_map_on_the_student():
    module = make(fusion=PER_LAYER, align={"map": "linear", "side": "student"})
    student, units = student_and_units()
    weights = learned_weights(module)
    turned = [linear(adapter, student) for adapter in module.adapters]
    pairs = [(mine, unit, weights[SAMPLE, i]) for i, (mine, unit) in enumerate(zip(turned, units, strict=True))]
    check(run(module), terms(pairs, "mse", range(3)), weights)


def test_with_injected_ce_the_fused_kv_and_not_the_kv_loss_trains_the_router():
    loss, fusion = LOSS | {"gamma": 0.0}, {"strategy": "learnable", "entropy": {"strength": 0.0}}
    for objective in ("kv", "injected_ce"):
        module = make(fusion=fusion | {"objective": objective}, loss=loss)
        got = run(module)
        for name in ("fused", "kv"):
            found = [None]
            if got[name].requires_grad:
                parameters = list(module.router.parameters())
                found = torch.autograd.grad(got[name].sum(), parameters, retain_graph=True, allow_unused=True)
            trained = any(each is not None and each.abs().max() > 0 for each in found)
            assert trained == (name == "fused" or objective == "kv"), (objective, name)


@pytest.mark.parametrize("objective", ["kv", "injected_ce"])
def test_the_entropy_term_trains_the_router_under_either_objective(objective):
    module = make(fusion={"strategy": "learnable", "entropy": {"strength": 0.5}, "objective": objective})
    (gradient,) = torch.autograd.grad(run(module)["part.entropy"], [list(module.router.parameters())[-1]])
    assert gradient.abs().max() > 0


def test_relation_heads_that_do_not_divide_a_model_s_channels_are_refused():
    def build(heads, maps):
        loss = {"distance": "relation", "relation_heads": heads}
        return KVObjective(KVConfig.model_validate(classic({"teachers": ["one"], "loss": loss})), maps, (HEADS, (1,)))

    with pytest.raises(ValueError, match=r"relation_heads 4: must divide .* \(student 4, one 6\); allowed: 1, 2$"):
        build(4, MAPS[:1])
    with pytest.raises(ValueError, match=r"\(student 4, one 5\); allowed: 1$"):
        build(2, MAPS[1:])
    assert build(2, MAPS[:1]).config.loss.relation_heads == 2
