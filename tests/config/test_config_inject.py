"""`kv.transfer: inject` in a study: what it is by default, what it refuses, and that nothing changes for arms that match."""

import pytest

from mtkv.config.errors import ConfigError
from mtkv.config.kv import KVConfig
from mtkv.config.study import load_study

INJECT = {"teachers": ["qwen2", "gpt2"], "transfer": "inject"}


def study_of(raw, kv, **arm):
    raw["claims"] = None
    raw["arms"] = {"sft": raw["arms"]["sft"], "inject": {"extends": "sft", "kv": kv} | arm}
    return load_study(raw)


def test_defaults_and_that_a_matching_arm_is_written_as_before(raw):
    arm = study_of(raw, INJECT).arms["inject"]
    assert arm.kv.injected
    assert arm.kv.model_dump()["fuser"] == {"head": "mlp", "hidden": 128}
    assert KVConfig.model_validate(arm.kv.model_dump(mode="json")) == arm.kv
    assert {"transfer", "fuser"}.isdisjoint(KVConfig(teachers=["a"]).model_dump())
    assert KVConfig(teachers=["a"], transfer="match").model_dump()["transfer"] == "match"


@pytest.mark.parametrize(
    ("changes", "arm", "message"),
    [
        ({"loss": {"lambda_k": 3}}, {}, "arms.inject.kv.loss: given, but transfer inject has no KV loss"),
        ({"loss": {"unit": "layer"}}, {}, "arms.inject.kv.loss: given"),
        (
            {"align": {"time": "truncate"}},
            {},
            "arms.inject.kv.align.time: 'truncate' may show a token what stands behind",
        ),
        ({"select": {"method": "uniform", "budget": 3}}, {}, "arms.inject.kv.select.method: 'uniform'"),
        (
            {"fusion": {"strategy": "teacher_ce"}},
            {},
            "arms.inject.kv.fusion.strategy: 'teacher_ce' reads the answer's likelihood",
        ),
        (
            {"fusion": {"strategy": "confidence"}},
            {},
            "arms.inject.kv.fusion.strategy: 'confidence' reads the answer's entropy",
        ),
        ({"fusion": {"strategy": "oracle"}}, {}, "arms.inject.kv.fusion.strategy: 'oracle'"),
        (
            {"fusion": {"strategy": "learnable", "objective": "injected_ce"}},
            {},
            "arms.inject.kv.fusion.objective: 'injected_ce' given, but transfer inject trains the router by cross-entropy anyway",
        ),
        ({"control": "projector_only"}, {}, "arms.inject.kv.control: 'projector_only' changes the KV loss"),
        (
            {"fuser": {"head": "mpl"}},
            {},
            "arms.inject.kv.fuser.head: 'mpl' is not one of mlp, linear, gated (did you mean 'mlp'?)",
        ),
        ({"transfer": "match", "fuser": {}}, {}, "arms.inject.kv.fuser: given, but transfer is match"),
        ({"transfer": "match", "control": "self"}, {}, "arms.inject.kv.control: 'self' needs transfer inject"),
        (
            {},
            {"student_view": "latent"},
            "arms.inject.student_view: 'latent' given, but kv.transfer is inject; allowed with it: text",
        ),
        (
            {},
            {"logits": {"teachers": ["reasoning"]}},
            "arms.inject.logits: given, but kv.transfer is inject; allowed with it: null",
        ),
        ({}, {"training": {"gradient_checkpointing": True}}, "arms.inject.training.gradient_checkpointing: true"),
        ({}, {"training": {"lora": {"quantize": "4bit"}}}, "arms.inject.training.lora.quantize: '4bit' given"),
    ],
)
def test_settings_that_mean_nothing_are_refused_where_they_stand(raw, changes, arm, message):
    with pytest.raises(ConfigError) as found:
        study_of(raw, INJECT | changes, **arm)
    assert any(str(problem).startswith(message) for problem in found.value.problems), str(found.value)


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        (("teachers", "tier"), "components", "arms.inject.kv.transfer: 'inject' needs the teacher's own KV"),
        (("evaluation", "backend"), "vllm", "evaluation.backend: 'vllm' cannot inject KV"),
        (
            ("student",),
            {"source": "hub", "name": "a/b", "prompt": "chat"},
            "arms.inject.kv.transfer: 'inject' given, but student",
        ),
        (("resources", "train", "strategy"), "ddp", "resources.train.strategy: 'ddp' given"),
    ],
)
def test_a_study_that_cannot_ask_with_teachers_is_refused(raw, section, value, message):
    tree = raw
    for key in section[:-1]:
        tree = tree.setdefault(key, {})
    tree[section[-1]] = value
    with pytest.raises(ConfigError) as found:
        study_of(raw, INJECT)
    assert any(str(problem).startswith(message) for problem in found.value.problems), str(found.value)


def test_weights_by_task_name_every_dataset_that_is_asked(raw):
    raw["data"]["sources"] = ["pocket_gsm8k"]
    kv = INJECT | {"fusion": {"strategy": "task", "by_task": {"pocket_gsm8k": [1, 0]}}}
    with pytest.raises(ConfigError, match=r"by_task: has no weights for pocket_math500, .*each dataset that is asked"):
        study_of(raw, kv)
