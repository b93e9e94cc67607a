"""Phases: what losses weigh is a straight line between given points, the loss is what the log says of it, and nothing else changes."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_study import STEPS, TRAINING, TinyStudy, kv, same, weights

from mtkv.config.errors import ConfigError
from mtkv.config.fusion import LogitConfig
from mtkv.config.latent import LatentConfig
from mtkv.config.phases import Phase
from mtkv.config.study import load_study
from mtkv.distill.dataset import DistillationRows
from mtkv.stages.train import arm_parts
from mtkv.training.phases import PhaseSampler, learning_rates, phase_weights, prompts_only

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


@pytest.mark.parametrize("router", [0, 3])
def test_the_routers_own_loss_has_a_factor(study, router):
    arm = kv(
        fusion={"strategy": "learnable", "objective": "injected_ce", "entropy": {"strength": 0}}, loss={"gamma": 0}
    )
    output, _ = train(study, f"router {router}", arm, {"name": "all", "share": 1, "router": router})
    lines = log(output)
    matched = lines["key"] + lines["value"] + 0.1 * lines["cosine"]
    np.testing.assert_allclose(lines["loss"], lines["ce"] + matched + router * lines["route_ce"], rtol=1e-5)
    assert lines["weight.router"].tolist() == [router] * STEPS


def test_logit_distillation_has_a_factor_apart_from_its_cross_entropy(study):
    arm = {"logits": LogitConfig(teachers=["twin"], alpha=0.3), "logit_teachers": [study.models["twin"]]}
    given = {"name": "a", "share": 0.5, "ce": 2, "logits": 0.5}, {"name": "b", "share": 0.5, "logits": [0, 0]}
    lines = log(train(study, "logits apart", None, *given, **arm)[0])
    assert lines["weight.ce"].tolist() == [2, 2, 2, 1, 1, 1]
    assert lines["weight.logits"].tolist() == [0.5, 0.5, 0.5, 0, 0, 0]
    by_hand = lines["weight.ce"] * 0.3 * lines["ce"] + lines["weight.logits"] * lines["kd"]
    np.testing.assert_allclose(lines["loss"], by_hand, rtol=1e-5)
    plain = log(study.train("logits", training=DENSE, **arm)[0]).iloc[
        0
    ]  # the first step's losses are the raw student's
    np.testing.assert_allclose(plain["loss"], 0.3 * lines["ce"].iloc[0] + lines["kd"].iloc[0], rtol=1e-5)


def rising_and_falling(steps, warmup):
    """Linear schedule, by its definition: up to 1 after `warmup` steps, then down to 0 after `steps`."""
    return [min(step / warmup if warmup else 1, (steps - step) / (steps - warmup), 1) for step in range(steps)]


def test_a_phase_with_a_learning_rate_runs_through_the_schedule_in_its_own_steps(study):
    own = {"learning_rate": 4e-3}
    given = phases({"name": "a", "share": 0.5} | own, {"name": "b", "share": 0.2}, {"name": "c", "share": 0.3} | own)

    def shape(steps):
        return [*rising_and_falling(steps, steps // 5), 0.0].__getitem__

    whole = rising_and_falling(100, 20)
    first, last = ([4 * x for x in rising_and_falling(length, length // 5)] for length in (50, 30))
    np.testing.assert_allclose(learning_rates(given, 100, 1e-3, shape), [*first, *whole[50:70], *last, 0])

    faster = study.train("faster", training=DENSE.model_copy(update={"learning_rate": 4e-3}))[0]
    output, _ = train(study, "one phase", None, {"name": "all", "share": 1} | own)
    assert same(weights(faster), weights(output))
    parts = {"name": "a", "share": 0.5}, {"name": "b", "share": 0.5, "learning_rate": 2e-3}
    logged = log(train(study, "two rates", None, *parts)[0])["learning_rate"]
    expected = [1e-3 * x for x in rising_and_falling(6, 1)[:3]] + [2e-3 * x for x in rising_and_falling(3, 1)]
    np.testing.assert_allclose(logged, expected, atol=1e-12)


@pytest.mark.parametrize("own", [{"sources": ["sums"]}, {"rows": 8}, {"sources": ["sums"], "rows": 4}])
def test_a_phase_with_rows_of_its_own_is_a_training_on_these(study, own):
    frame = pd.read_parquet(study.paths["train"])
    frame = frame[frame["dataset"].isin(own.get("sources", frame["dataset"]))].head(own.get("rows", len(frame)))
    path = study.folder / "some.parquet"
    frame.to_parquet(path)
    alone, facts = study.train(f"alone {own}", kv(loss={"gamma": 0}), training=DENSE, train_rows=path)
    output, found = train(study, f"phase {own}", kv(loss={"gamma": 0}), {"name": "all", "share": 1} | own)
    assert same(weights(alone), weights(output))
    for fact in ("steps", "rows_seen", "tokens"):
        assert facts[fact] == found[fact], fact


def test_phases_of_the_same_rows_go_on_where_the_last_one_stopped():
    datasets = ["a", "b"] * 3
    given = phases(
        {"name": "1", "share": 0.3, "sources": ["a"]},
        {"name": "2", "share": 0.3},
        {"name": "3", "share": 0.4, "sources": ["a"]},
    )
    sampler = PhaseSampler(given, 10, 2, datasets, lambda rows, number: np.roll(range(len(rows)), -number).tolist())
    expected = [0, 2, 4, 2, 4, 0], [0, 1, 2, 3, 4, 5], [4, 0, 2, 0, 2, 4, 2, 4]
    assert list(sampler) == [row for part in expected for row in part]
    assert len(sampler) == 20
    with pytest.raises(ValueError, match="none of the arm's 6 training rows is of c"):
        PhaseSampler(phases({"name": "1", "share": 1, "sources": ["c"]}), 10, 2, datasets, None)


def test_layers_of_a_phase_are_those_of_the_loss(study):
    plain, _ = study.train("first layer", kv(loss={"gamma": 0, "layers": [0, 1]}), training=DENSE)
    output, _ = train(study, "layers", kv(loss={"gamma": 0}), {"name": "all", "share": 1, "layers": [0, 1]})
    every, _ = study.train("all layers", kv(loss={"gamma": 0}), training=DENSE)
    assert same(weights(plain), weights(output))
    assert not same(weights(every), weights(output))
    ends = [
        pd.read_parquet(each / "training.parquet").query("split == 'val' and step == 0") for each in (output, every)
    ]
    assert ends[0].equals(ends[1])  # validation losses are over all layers
    with pytest.raises(ValueError, match="layers 2 to 3: not inside 0 to 2"):
        train(study, "outside", kv(), {"name": "a", "share": 0.5}, {"name": "b", "share": 0.5, "layers": [2, 3]})


PROMPTS = {"name": "prompts", "share": 1, "ce": 0, "text": "prompts"}


def test_a_phase_of_prompts_reads_no_target(study):
    _, _, (rows, _) = arm_parts(study.run(study.folder / "unused", kv(loss={"gamma": 0})))
    assert isinstance(rows, DistillationRows)
    prompts = [int(np.flatnonzero(row.is_target)[0]) for row in rows.encoded]
    chosen = [int(np.argmax(prompts)), int(np.argmin(prompts)), 5]
    batch, first = rows.collate(chosen), [prompts[row] for row in chosen]
    assert first[0] > first[1]
    cut = prompts_only(batch)
    for row, length in enumerate(first):
        assert cut["input_ids"][row, :length].equal(batch["input_ids"][row, :length])
        assert cut["attention_mask"][row].tolist() == [1] * length + [0] * (max(first) - length)
    places = list(zip(batch["kv_sample"].tolist(), batch["kv_position"].tolist(), strict=True))
    kept = [place for place, (row, position) in enumerate(places) if position < first[row]]
    assert 0 < len(kept) < len(places)
    assert list(zip(cut["kv_sample"].tolist(), cut["kv_position"].tolist(), strict=True)) == [places[i] for i in kept]
    assert all(short.equal(kv[kept]) for short, kv in zip(cut["teacher_kv"], batch["teacher_kv"], strict=True))
    other = dict(batch)  # other targets, other KV of targets: the same batch
    behind = torch.arange(batch["input_ids"].shape[1]) >= torch.tensor(first)[:, None]
    other["input_ids"] = batch["input_ids"].where(~behind, 7)
    other["labels"] = batch["labels"].where(batch["labels"] < 0, 7)
    gone = [place for place in range(len(places)) if place not in kept]
    other["teacher_kv"] = [kv.index_fill(0, torch.tensor(gone), 9.0) for kv in batch["teacher_kv"]]
    again = prompts_only(other)
    for name in ("input_ids", "attention_mask", "labels", "kv_sample", "kv_position"):
        assert cut[name].equal(again[name]), name
    assert all(one.equal(two) for one, two in zip(cut["teacher_kv"], again["teacher_kv"], strict=True))
    assert (cut["labels"] < 0).all()


def test_a_training_on_prompts_matches_and_counts_the_prompts_alone(study):
    arm = kv(loss={"gamma": 0}, fusion={"strategy": "learnable"})
    output, facts = train(study, "prompts", arm, PROMPTS)
    lines = log(output)
    entropy = lines["loss"] - (lines["key"] + lines["value"] + 0.1 * lines["cosine"])
    assert 0 < entropy.abs().max() < 0.05
    assert "ce" not in lines
    assert facts["rows_seen"] == STEPS * 4
    _, _, (rows, _) = arm_parts(study.run(study.folder / "unused", arm))
    assert facts["tokens"] == sum((~row.is_target).sum() for row in rows.encoded)  # six steps of four: one pass of 24


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
        ([PROMPTS, TEXT | {"share": 0.0}], KV, r"arms.a.training.phases\[1\].share"),
        ([PROMPTS | {"kv": [1, 2], "layers": "first"}], KV, ""),
        ([ONE | {"sources": ["pocket_bbh"], "rows": 9, "learning_rate": 1}], None, ""),
        ([PROMPTS | {"ce": 1}], KV, r"phases\[0\].ce: \[1.0, 1.0\] given, but text is prompts, .*; allowed: 0"),
        ([PROMPTS], None, r"phases\[0\]: 'prompts' trains nothing"),
        ([PROMPTS], KV | {"align": {"time": "iou"}}, "arms.a.kv.align.time: 'iou' may match .*; allowed .*: sync"),
        ([PROMPTS], KV | {"select": {"method": "uniform"}}, "arms.a.kv.select.method: 'uniform' chooses .*: full"),
        ([ONE | {"layers": [2, 1]}], KV, r"arms.a.training.phases\[0\].layers: \[2, 1\] is no range"),
        ([ONE | {"layers": "last"}], None, r"phases\[0\].layers: last given, but the arm has no kv; allowed: null"),
        ([ONE | {"logits": 1}], KV, r"phases\[0\].logits: .* but the arm has no logits; allowed: null"),
        ([ONE | {"router": 1}], KV, r"phases\[0\].router: .* no kv.fusion.objective injected_ce; allowed: null"),
        ([ONE | {"sources": ["bbh"]}], None, r"phases\[0\].sources\[0\]: 'bbh' is not a training source of this study"),
        ([ONE | {"learning_rate": 0}], None, r"phases\[0\].learning_rate: 0 is not allowed"),
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


@pytest.mark.parametrize(
    ("training", "kv", "message"),
    [
        ({"epochs": 1, "phases": [ONE | {"rows": 3}]}, None, r"phases\[0\].rows: given, but training.steps is null"),
        (
            {"steps": 9, "rows": 2, "phases": [ONE | {"rows": 3}]},
            None,
            r"phases\[0\].rows: 3 given, but training.rows is 2",
        ),
        (
            {"steps": 9, "phases": [PROMPTS]},
            {"teachers": ["qwen2", "gpt2"], "fusion": {"strategy": "confidence"}},
            "arms.a.kv.fusion.strategy: 'confidence' reads the answer's entropy",
        ),
        (
            {"steps": 9, "phases": [PROMPTS]},
            {
                "teachers": ["qwen2", "gpt2"],
                "align": {"map": "ridge"},
                "fusion": {"strategy": "learnable", "objective": "injected_ce"},
            },
            r"phases\[0\].router: .* given, but text is prompts, and this loss reads the targets; allowed: 0",
        ),
    ],
)
def test_rows_that_a_phase_cannot_have_are_said_before_anything_runs(training, kv, message):
    teachers = {"models": {"qwen2": {"name": "qwen2"}, "gpt2": {"name": "gpt2"}}}
    config = {"study": "s", "teachers": teachers, "arms": {"a": {"training": training, "kv": kv}}}
    with pytest.raises(ConfigError, match=message):
        load_study(config | {"comparison": {"baseline": "a"}})


def test_what_is_not_said_of_a_phase_is_not_written():
    assert set(Phase(name="a", share=1).model_dump()) == {"name", "share", "ce", "kv"}
