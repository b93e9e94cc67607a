"""Whole trainings of arms with latents on tiny models in folders: what is saved and logged, and what equals plain training."""

import pandas as pd
import pytest
import torch
from classic_kv import classic
from safetensors.torch import load_file
from tiny_study import STEPS, TRAINING, TinyStudy, same, weights

from mtkv.config.kv import KVConfig
from mtkv.config.latent import LatentConfig
from mtkv.latent.model.student import LatentStudent
from mtkv.provenance.files import write_parquet

LATENT = LatentConfig(tokens=4, iterations=2, keep_last_step=True)  # chains of these rows have one step
UNIFORM = {"select": {"method": "uniform"}}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return TinyStudy(tmp_path_factory.mktemp("study"))


def taught_by(*teachers, **changes):
    return KVConfig.model_validate(classic({"teachers": list(teachers)} | UNIFORM | changes))


def terms_of(output):
    log = pd.read_parquet(output / "training.parquet")
    return {split: set(log[log["split"] == split]["term"]) for split in ("train", "val")}


def test_without_latents_and_chain_it_is_training_on_question_and_answer_to_the_bit(study):
    config = LatentConfig(tokens=0, chain_weight=0)
    output, facts = study.train("direct", latent=config)
    paths = study.paths
    study.paths = {}
    for split, path in paths.items():
        rows = pd.read_parquet(path)
        answers = [target[target.index("\n") :] for target in rows["target"]]
        study.paths[split] = study.folder / f"{split}-answers.parquet"
        write_parquet(study.paths[split], rows.assign(target=answers, reasoning_end=rows["prompt_end"]))
    plain, plain_facts = study.train("plain")
    study.paths = paths
    assert same(weights(output), weights(plain))
    assert facts["tokens"] == plain_facts["tokens"]
    assert (facts["slots"], "slots" in plain_facts) == (0, False)
    with_chain, _ = study.train("with_chain", latent=LatentConfig(tokens=0))
    assert not same(weights(output), weights(with_chain))


def test_an_arm_with_one_teacher_saves_what_can_be_loaded_and_logs_every_term(study):
    kv = taught_by("qwen3", align={"map": "linear", "side": "student"}, loss={"distance": "smooth_l1", "lambda_k": 10})
    output, facts = study.train("single", kv, latent=LATENT.model_copy(update={"codi_weight": 0.5}))
    student = LatentStudent.load(output / "model")
    assert (student.latent.tokens, student.latent.iterations) == (4, 2)
    assert facts["steps"] == STEPS
    assert facts["slots"] == 6  # and two markers
    assert 0 < facts["supervised_share"] < 1
    assert facts["budget_bites"] == 1
    terms = terms_of(output)
    expected = {"ce", "chain_ce", "codi", "key", "value", "loss", "route.qwen3"}
    assert expected | {"share.ce", "share.chain_ce", "share.codi", "share.key", "share.value"} <= terms["train"]
    assert expected <= terms["val"]
    routing = pd.read_parquet(output / "routing.parquet")
    assert set(routing["teacher"]) == {"qwen3"}


def test_the_same_training_gives_the_same_weights_and_another_arm_others(study):
    kv = taught_by("qwen3", "gpt2", fusion={"strategy": "learnable"})
    runs = {
        "fused": study.train("fused", kv, latent=LATENT),
        "again": study.train("again", kv, latent=LATENT),
        "shuffled": study.train("twin", kv.model_copy(update={"control": "shuffle_items"}), latent=LATENT),
        "latent": study.train("latent", latent=LATENT),
    }
    found = {name: load_file(output / "model" / "latent.safetensors") for name, (output, _) in runs.items()}
    assert same(found["fused"], found["again"])
    for other in ("shuffled", "latent"):
        assert not same(found["fused"], found[other])


def test_the_student_teaches_itself_without_store_or_map(study):
    own = taught_by("student", align={"map": "identity"}, select={"method": "rkv"})
    output, facts = study.train("own", own, latent=LATENT)
    without, _ = study.train("without", latent=LATENT)
    assert not same(weights(output), weights(without))
    assert facts["budget_bites"] == 1
    assert set(pd.read_parquet(output / "routing.parquet")["teacher"]) == {"student"}


def test_teachers_may_read_along(study):
    stored, _ = study.train("stored", taught_by("qwen3"), latent=LATENT)
    online, _ = study.train("online", taught_by("qwen3"), latent=LATENT, tier="online")
    for name, tensor in weights(stored).items():  # the store is in float16
        torch.testing.assert_close(tensor, weights(online)[name], atol=2e-3, rtol=2e-2)


def test_adapters_are_merged_and_the_latents_trained_with_them(study):
    pytest.importorskip("peft")
    training = TRAINING.model_validate(TRAINING.model_dump(mode="json") | {"lora": {"rank": 2, "alpha": 4}})
    output, _ = study.train("lora", training=training, latent=LATENT)
    assert weights(output).keys() == weights(study.train("latent", latent=LATENT)[0]).keys()
    begun = study.train("untouched", training=training.model_copy(update={"learning_rate": 1e-12}), latent=LATENT)[0]
    moved, start = (load_file(path / "model" / "latent.safetensors") for path in (output, begun))
    assert all((moved[name] - start[name]).abs().max() > 1e-4 for name in ("latents", "begin", "end"))


def test_an_arm_trains_on_the_styles_it_names(study):
    training = TRAINING.model_copy(update={"styles": ["cot"]})
    paths = study.paths
    study.paths = {}
    for split, path in paths.items():
        rows = pd.read_parquet(path)
        study.paths[split] = study.folder / f"{split}-styles.parquet"
        styles = ["cot" if number % 3 else "direct" for number in range(len(rows))]
        write_parquet(study.paths[split], rows.assign(style=styles))
    _, facts = study.train("styles", training=training)
    study.paths = paths
    assert facts["train_rows"] == 16
