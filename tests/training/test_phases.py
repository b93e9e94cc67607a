"""Phases: what losses weigh is a straight line between given points, the loss is what the log says of it, and nothing else changes."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_study import STEPS, TRAINING, TinyStudy, kv, same, weights

from mtkv.config.errors import ConfigError
from mtkv.config.latent import LatentConfig
from mtkv.config.phases import Phase
from mtkv.config.study import load_study
from mtkv.training.phases import phase_weights

MATCH, TEXT = {"name": "match", "share": 0.5, "ce": 0, "kv": 2}, {"name": "text", "share": 0.5, "kv": [2, 0]}
DENSE = TRAINING.model_copy(update={"logging_steps": 1})


def phases(*given):
    return [Phase.model_validate(phase) for phase in given]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return TinyStudy(tmp_path_factory.mktemp("study"))


def train(study, name, arm, *given, **more):
    output, facts = study.train(name, arm, training=DENSE.model_copy(update={"phases": phases(*given)}), **more)
    return output, facts


def log(output):
    frame = pd.read_parquet(output / "training.parquet").query("split == 'train'")
    table = frame.pivot_table(index="step", columns="term", values="value")
    return table[table["loss"].notna()].dropna(axis=1)  # gradient shares have lines of their own


@pytest.mark.parametrize("steps", [1, 7, 10, 40, 1000])
def test_factors_are_lines_between_the_given_points(steps):
    given = phases(
        {"name": "a", "share": 0.1, "ce": 0, "kv": 3},
        {"name": "b", "share": 0.2, "ce": [0, 1], "kv": [3, 1]},
        {"name": "c", "share": 0.7, "kv": [1, 0]},
    )
    found = [phase_weights(given, step / steps) for step in range(steps)]
    progress = np.arange(steps) / steps
    np.testing.assert_allclose([each["ce"] for each in found], np.interp(progress, [0.1, 0.3], [0, 1]), atol=1e-9)
    expected = np.interp(progress, [0, 0.1, 0.3, 1], [3, 3, 1, 0])
    np.testing.assert_allclose([each["kv"] for each in found], expected, atol=1e-9)
    assert phase_weights([], 0.5) == {}


@pytest.mark.parametrize("first", [0.1 + 0.2, 0.3])
def test_a_phase_has_the_steps_of_its_share(first):
    given = phases({"name": "a", "share": first, "ce": 0, "kv": 1}, {"name": "b", "share": 1 - first})
    assert [phase_weights(given, step / 40)["ce"] for step in range(40)] == [0.0] * 12 + [1.0] * 28


def test_the_loss_is_the_weighted_sum_that_the_log_says(study):
    output, facts = train(study, "phases", kv(loss={"lambda_k": 2, "gamma": 0}), MATCH, TEXT)
    lines = log(output)
    assert lines["weight.ce"].tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(lines["weight.kv"], [2, 2, 2, 2, 4 / 3, 2 / 3])
    matched = 2 * lines["key"] + lines["value"] + 0.1 * lines["cosine"]
    np.testing.assert_allclose(
        lines["loss"], lines["weight.ce"] * lines["ce"] + lines["weight.kv"] * matched, rtol=1e-5
    )
    plain, other = study.train("no phases", kv(loss={"lambda_k": 2, "gamma": 0}), training=DENSE)
    assert not {"weight.ce", "weight.kv"} & set(log(plain))
    for fact in ("steps", "rows_seen", "tokens", "batch_size", "ce_weight"):  # what arms are compared by
        assert facts[fact] == other[fact], fact
    ends = [
        pd.read_parquet(each / "training.parquet").query("split == 'val' and step == 0") for each in (output, plain)
    ]
    assert ends[0].equals(ends[1])  # validation losses know no phases


def test_phases_that_change_nothing_change_nothing(study):
    arm = kv(loss={"gamma": 0}, fusion={"strategy": "learnable"})
    plain, _ = study.train("plain", arm, training=DENSE)
    output, _ = train(study, "ones", arm, {"name": "a", "share": 0.3}, {"name": "b", "share": 0.7})
    assert same(weights(plain), weights(output))
    sft, _ = study.train("sft", training=DENSE)
    output, _ = train(study, "no kv", kv(loss={"gamma": 0}), {"name": "a", "share": 1, "kv": 0})
    assert same(weights(sft), weights(output))


def test_while_ce_is_off_only_what_makes_kv_is_trained(study):
    output, _ = train(study, "matching", kv(loss={"gamma": 0}), {"name": "match", "share": 1, "ce": 0})
    before, after = load_file(study.folder / "student" / "model.safetensors"), weights(output)
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {"model.layers.0.mlp.up_proj.weight", "model.layers.2.self_attn.k_proj.weight"} <= moved
    for name in ("model.norm.weight", "model.layers.2.mlp.up_proj.weight", "model.layers.2.self_attn.q_proj.weight"):
        assert name not in moved, name


def test_a_router_learns_from_its_own_loss_in_every_phase(study):
    arm = kv(fusion={"strategy": "learnable", "objective": "injected_ce"}, loss={"gamma": 0})
    output, _ = train(study, "router", arm, {"name": "match", "share": 1, "ce": 0, "kv": 1})
    lines = log(output)
    matched = lines["key"] + lines["value"] + 0.1 * lines["cosine"]
    rest = lines["loss"] - matched - lines["route_ce"]
    assert lines["route_ce"].min() > 1
    assert len(lines) == STEPS
    assert rest.abs().max() < 0.05  # the entropy's part


def test_latents_have_phases_too(study):
    latent = LatentConfig(tokens=4, iterations=2, keep_last_step=True, codi_weight=0.5)
    arm = kv(select={"method": "random"}, loss={"gamma": 0})
    lines = log(train(study, "latents", arm, MATCH, TEXT, latent=latent)[0])
    text = lines["ce"] + lines["chain_ce"] + 0.5 * lines["codi"]
    matched = lines["key"] + lines["value"] + 0.1 * lines["cosine"]
    np.testing.assert_allclose(lines["loss"], lines["weight.ce"] * text + lines["weight.kv"] * matched, rtol=1e-5)
    assert len(lines) == STEPS


ONE = {"name": "one", "share": 1}
KV = {"teachers": ["qwen2"]}
INJECTED = KV | {"transfer": "inject"}


@pytest.mark.parametrize(
    ("given", "part", "message"),
    [
        ([ONE], None, ""),
        ([MATCH, TEXT], KV, ""),
        ([MATCH], KV, r"arms.a.training.phases: shares \[0.5\] sum to 0.5, not to 1"),
        (
            [ONE | {"ce": 0}],
            None,
            r"arms.a.training.phases\[0\]: 'one' trains nothing; ce, or in an arm with kv kv, above 0",
        ),
        ([ONE | {"ce": 0, "kv": 0}], KV, r"arms.a.training.phases\[0\]: 'one' trains nothing"),
        (
            [ONE | {"kv": 1}],
            None,
            r"arms.a.training.phases\[0\].kv: \[1.0, 1.0\] given, but the arm has no kv; allowed: null",
        ),
        ([ONE | {"kv": [1, -1]}], KV, r"arms.a.training.phases\[0\].kv\[1\]: -1 is not allowed; allowed: at least 0"),
        ([ONE | {"kv": [1, 1, 0]}], KV, r"arms.a.training.phases\[0\].kv: .* at most 2 entries"),
        ([ONE | {"ce": "off"}], KV, r"arms.a.training.phases\[0\].ce: 'off' is not a list"),
        (
            [ONE],
            KV | {"loss": {"share": 0.3}},
            "arms.a.kv.loss.share: 0.3 sets the weight .*; allowed with training.phases: null",
        ),
    ],
)
def test_mistakes_are_said_before_anything_runs(given, part, message):
    arm = {"training": {"steps": 10, "phases": given}, "kv": part}
    config = {"study": "s", "teachers": {"models": {"qwen2": {"name": "qwen2"}}}, "arms": {"a": arm}}
    if not message:
        study = load_study(config | {"comparison": {"baseline": "a"}})
        again = load_study(study.model_dump(mode="json"))
        assert again == study
        return
    with pytest.raises(ConfigError, match=message):
        load_study(config | {"comparison": {"baseline": "a"}})
