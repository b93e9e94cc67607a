"""The stated model, against PyTorch's own count of FLOPs, against files that real stages write, and against sums done by hand."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mtkv.config.models import ModelConfig
from mtkv.config.study import read_study
from mtkv.kv.extract import StorePlan, extract_shard
from mtkv.latent.model import interventions as latent_conditions
from mtkv.models.load import load_model, load_tokenizer
from mtkv.models.tokenization import encode_rows
from mtkv.ops.cost_model.estimate import DEVICES, Estimator
from mtkv.ops.cost_model.model_sizes import model_size
from mtkv.ops.cost_model.past_runs import STARTUP, Sample, config_digest
from mtkv.ops.cost_model.work import Amounts, UnknownSizeError, Work, work_of
from mtkv.ops.planned_jobs import PlannedJob
from mtkv.stages import diagnose_latents as latents

POCKET = {"config": ModelConfig(name="student").model_dump(mode="json"), "content": ""}
GPT2 = {"config": ModelConfig(name="gpt2").model_dump(mode="json"), "content": ""}
SIZE = model_size(ModelConfig(name="student"))
READER = model_size(ModelConfig(name="gpt2"))
AMOUNTS = Amounts(
    train=4000,
    validation=400,
    calibration=400,
    questions={"pocket_gsm8k": 200, "pocket_cmmlu": 100},
    tokens_per_row={"student": 40.0, "gpt2": 36.0},
    measured=frozenset({"student", "gpt2"}),
    student=POCKET,
)
ARM = {
    "training": read_study("config/config.yaml").arms["sft"].training.model_dump(mode="json"),
    "kv": None,
    "teachers": [],
    "tier": "raw",
    "logits": None,
    "logit_teachers": [],
}


def planned(rule="train", arm=ARM, gpu=0, number=0, threads=1, outputs=("results/s/arms/a/seed1/card.json",), **params):
    given = {"study": "s", "student": POCKET, "arm": arm, "code": "a" * 16} if rule == "train" else params
    return PlannedJob(number, rule, {}, (), outputs, given, threads, {"gpu": gpu}, False, (), True)


def sample(job, seconds, size=0.0, rows=None, params=None, gpu=None, outputs=("elsewhere",), reused=False):
    given = params or job.params
    return Sample(job.rule, outputs, {}, config_digest(given), given, seconds, size, rows, gpu, reused)


def wide_model(build_model):
    """So wide that the matrices of the layers are nearly all of it."""
    return build_model("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=4)


def test_two_flops_per_parameter_and_token_read_and_six_trained(build_model):
    model = wide_model(build_model).train()
    ids = torch.randint(3, 60, (2, 16))
    parameters = sum(weight.numel() for weight in model.parameters())
    with FlopCounterMode(display=False) as read:
        output = model(input_ids=ids, labels=ids)
    with FlopCounterMode(display=False) as back:
        output.loss.backward()
    assert read.get_total_flops() == pytest.approx(2 * parameters * ids.numel(), rel=0.05)
    assert read.get_total_flops() + back.get_total_flops() == pytest.approx(6 * parameters * ids.numel(), rel=0.05)


def test_recomputed_activations_cost_eight(build_model):
    model = wide_model(build_model).train()
    model.gradient_checkpointing_enable()
    ids = torch.randint(3, 60, (2, 16))
    with FlopCounterMode(display=False) as both:
        model(input_ids=ids, labels=ids).loss.backward()
    parameters = sum(weight.numel() for weight in model.parameters())
    assert both.get_total_flops() == pytest.approx(
        8 * parameters * ids.numel(), rel=0.08
    )  # the last product is not recomputed
    arm = ARM | {"training": ARM["training"] | {"gradient_checkpointing": True, "eval_rows": 1}}
    plain = ARM | {"training": ARM["training"] | {"eval_rows": 1}}
    recomputed, kept = (work_of("train", planned(arm=each).params, AMOUNTS, ()) for each in (arm, plain))
    ratio = recomputed.flops / kept.flops
    assert ratio == pytest.approx(8 / 6, rel=0.001)


def test_a_training_by_hand():
    # 150 steps · 32 rows · 40 tokens; losses at steps 0, 50, 100, 150 on 128 rows
    work = work_of("train", planned().params, AMOUNTS, ())
    assert work.flops == 6 * SIZE.parameters * 150 * 32 * 40 + 2 * SIZE.parameters * 4 * 128 * 40
    assert work.written == SIZE.parameters * 4
    assert work.transient == 3 * 3 * 4 * SIZE.parameters
    epochs = ARM | {"training": ARM["training"] | {"steps": None, "epochs": 2.0}}
    twice = work_of("train", planned(arm=epochs).params, AMOUNTS, ())
    assert twice.flops == 6 * SIZE.parameters * 250 * 32 * 40 + 2 * SIZE.parameters * 6 * 128 * 40


def test_teachers_that_read_along_and_adapters_by_hand():
    kv = {"fusion": {"objective": "kv"}, "teachers": ["gpt2"], "align": {}}
    arm = ARM | {"kv": kv, "teachers": [GPT2], "tier": "online"}
    seen = (150 * 32 + 4 * 128) * 40
    plain = work_of("train", planned().params, AMOUNTS, ()).flops
    assert work_of("train", planned(arm=arm).params, AMOUNTS, ()).flops == plain + 2 * READER.parameters * seen
    stored = work_of("train", planned(arm=arm | {"tier": "raw"}).params, AMOUNTS, ()).flops
    assert stored == plain
    adapters = ARM | {"training": ARM["training"] | {"lora": {"rank": 4}}}
    assert work_of("train", planned(arm=adapters).params, AMOUNTS, ()).flops == plain - 2 * SIZE.parameters * 150 * 32 * 40  # fmt: skip


def test_a_step_of_several_passes_is_measured_first_where_a_term_needs_it():
    def flops(accumulation, **align):
        kv = {"fusion": {"objective": "kv"}, "teachers": ["gpt2"], "align": align}
        training = ARM["training"] | {"batch_size": 32 // accumulation, "gradient_accumulation": accumulation}
        return work_of("train", planned(arm=ARM | {"kv": kv, "training": training}).params, AMOUNTS, ()).flops

    looked = 2 * SIZE.parameters * 150 * 32 * 40
    assert flops(4) == flops(4, map="linear", side="student") == flops(1)
    for align in ({"map": "linear", "side": "teacher"}, {"map": "z_space"}):
        assert flops(1, **align) == flops(1)
        assert flops(4, **align) == flops(1) + looked


@pytest.mark.parametrize(
    ("dtype", "importance"), [("float32", False), ("float16", True), ("int8", False), ("int8", True)]
)
def test_the_bytes_of_a_store_are_those_that_extraction_writes(dtype, importance, tmp_path):
    teacher = ModelConfig(name="gpt2")
    prompts = [f"Question: Tom has {i} apples and buys {i + 7} more. How many?\nReason:" for i in range(60)]
    targets = [f" {i}+{i + 7}={2 * i + 7}.\nAnswer: {2 * i + 7}" for i in range(60)]
    rows = pd.DataFrame({"id": [str(i) for i in range(60)], "prompt": prompts, "target": targets})
    rows["reasoning_end"] = rows["prompt"].str.len() + rows["target"].str.find("\n")
    rows.to_parquet(tmp_path / "rows.parquet")
    paths = [tmp_path / "rows.parquet"]
    facts = extract_shard(teacher, paths, 0, StorePlan([0, 2, 3], 2, dtype, 16, importance), tmp_path / "shard")
    per_row = sum(len(row.input_ids) for row in encode_rows(load_tokenizer(teacher), prompts, targets)) / 60
    params = {
        "student": POCKET,
        "teacher": GPT2,
        "layers": ["ratio"],
        "shards": 2,
        "dtype": dtype,
        "importance": importance,
    }
    amounts = replace(
        AMOUNTS, train=40, validation=10, calibration=10, tokens_per_row={"student": 1.0, "gpt2": per_row}
    )
    work = work_of("teacher_kv", params, amounts, (), "gpt2")
    assert work.written == pytest.approx(facts["bytes"], rel=0.08)
    assert work.flops == pytest.approx(2 * READER.parameters * facts["tokens"], rel=0.05)


def test_the_bytes_of_a_model_are_those_that_are_saved(tmp_path):
    model = load_model(ModelConfig(name="student"))
    model.save_pretrained(tmp_path)
    saved = (tmp_path / "model.safetensors").stat().st_size
    assert work_of("train", planned().params, AMOUNTS, ()).written == pytest.approx(saved, rel=0.01)


def test_answers_by_hand():
    outputs = ("p/pocket_gsm8k.parquet", "p/pocket_cmmlu.parquet", "p/card.json")
    evaluation = {"batch_size": 128, "max_new_tokens": 48, "num_fewshot": 0}
    work = work_of("predict", {"model": None, "evaluation": evaluation}, AMOUNTS, outputs)
    assert work.flops == 2 * SIZE.parameters * (200 * (40 + 48) + 100 * 4 * 40)
    assert work.steps == 2 * 48  # 200 questions in two batches
    assert work.written == 300 * 600
    teacher = work_of("predict", {"model": GPT2, "evaluation": evaluation}, AMOUNTS, outputs)
    assert teacher.flops / work.flops == READER.parameters / SIZE.parameters


@pytest.mark.parametrize(("tokens", "conditions"), [(6, 5), (1, 4)])
def test_diagnostics_of_latents_by_hand(tokens, conditions):
    assert (len(latent_conditions.conditions(tokens)), latents.QUESTIONS) == (conditions, 100)
    evaluation = {"batch_size": 128, "max_new_tokens": 48, "num_fewshot": 0}
    params = {"arm": ARM | {"latent": {"tokens": tokens, "iterations": 2}}, "evaluation": evaluation}
    work = work_of("latents", params, AMOUNTS, ("x/accuracy.parquet",))
    read = 100 * (40 + 48) + 100 * 4 * 40 + 200 * tokens * 2  # the first 100 questions of both datasets
    assert work.flops == conditions * 2 * SIZE.parameters * read
    assert work.steps == conditions * 48


def test_a_model_that_is_not_here_is_said_and_not_guessed(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    hub = {"config": ModelConfig(source="hub", name="owner/large").model_dump(mode="json")}
    params = planned().params | {"student": hub}
    with pytest.raises(UnknownSizeError, match="owner/large"):
        work_of("train", params, AMOUNTS, ())
    found = Estimator(AMOUNTS).estimate(replace(planned(), params=params))
    assert (found.basis, found.seconds) == ("unknown", 0)
    assert "owner/large" in found.note


def test_a_run_that_is_not_trained_yet_has_the_students_size():
    run = ModelConfig(source="run", study="later", arm="sft", seed=1)
    mix = ModelConfig(source="merged", name="mix", merge=[run, run])
    found = []
    for config in (run, mix, ModelConfig(name="student"), ModelConfig(name="gpt2")):
        model = {"config": config.model_dump(mode="json"), "content": ""}
        reads = {
            "teacher": model,
            "student": POCKET,
            "layers": ["ratio"],
            "shards": 1,
            "dtype": "float16",
            "importance": False,
        }
        found.append(work_of("teacher_kv", reads, AMOUNTS, ()))
    assert found[0] == found[1] == found[2] != found[3]


def test_without_past_runs_a_time_is_the_model_on_the_device():
    work = work_of("train", planned().params, AMOUNTS, ())
    for gpu, name, count in ((0, "cpu", 2), (4, "h100", 4)):
        found = Estimator(AMOUNTS, gpu="h100", utilisation=0.5).estimate(planned(gpu=gpu, threads=2))
        assert found.basis == "estimated"
        assert found.seconds == pytest.approx(STARTUP + work.flops / (DEVICES[name].flops_32 * 0.5 * count))
    named = replace(planned(gpu=1), resources={"gpu": 1, "gpu_model": "h100_80gb"})
    small = Estimator(AMOUNTS, gpu="t4")
    assert small.model_seconds(named, work) < small.model_seconds(planned(gpu=1), work)


def test_decoding_waits_for_memory_or_for_the_step():
    device = DEVICES["cpu"]
    job = planned()
    large = Work(steps=10, step_bytes=1e9)
    assert Estimator(AMOUNTS).model_seconds(job, large) == pytest.approx(10 * 1e9 / device.bandwidth)
    assert Estimator(AMOUNTS).model_seconds(job, Work(steps=10, step_bytes=1.0)) == 10 * device.step_seconds


def test_a_run_of_the_same_config_is_a_measurement():
    job = planned()
    samples = [sample(job, seconds, size=100.0) for seconds in (30.0, 50.0, 34.0)]
    found = Estimator(AMOUNTS, samples).estimate(job)
    assert (found.seconds, found.written, found.basis) == (34.0, 100.0, "measured")
    own = sample(job, 99.0, outputs=job.outputs)
    assert Estimator(AMOUNTS, [*samples, own]).estimate(job).seconds == 99.0
    reused = sample(job, 1.0, outputs=job.outputs, reused=True)
    assert Estimator(AMOUNTS, [*samples, reused]).estimate(job).seconds == 34.0


def test_other_amounts_are_scaled_by_the_work():
    job = planned()
    longer = planned(arm=ARM | {"training": ARM["training"] | {"steps": 300}})
    ratio = work_of("train", longer.params, AMOUNTS, ()).flops / work_of("train", job.params, AMOUNTS, ()).flops
    found = Estimator(AMOUNTS, [sample(job, 40.0, size=7.0)]).estimate(longer)
    assert found.basis == "scaled"
    assert found.seconds == pytest.approx(STARTUP + 30 * ratio)
    assert found.written == 7.0
    fewer_rows = sample(job, 40.0, rows=2400)
    assert Estimator(AMOUNTS, [fewer_rows]).estimate(job).seconds == pytest.approx(80.0)


def test_the_sample_with_as_many_teachers_is_preferred():
    kv = {"fusion": {"objective": "kv"}, "teachers": ["gpt2"], "align": {}}
    with_kv = planned(arm=ARM | {"kv": kv, "teachers": [GPT2]}).params
    other = planned(arm=ARM | {"kv": kv | {"teachers": ["qwen2"]}, "teachers": [GPT2]})
    far = [sample(planned(), 20.0) for _ in range(2)]
    near = [sample(planned(), seconds, params=with_kv) for seconds in (60.0, 61.0, 62.0)]
    assert Estimator(AMOUNTS, [*far, *near]).estimate(other).seconds == 61.0


def test_runs_on_other_devices_measure_nothing():
    job = planned(gpu=1)
    assert Estimator(AMOUNTS, [sample(job, 30.0)]).estimate(job).basis == "estimated"
    assert Estimator(AMOUNTS, [sample(job, 30.0, gpu="NVIDIA A100")]).estimate(job).basis == "measured"


def test_params_of_another_version_are_left_out():
    job = planned()
    odd = sample(job, 30.0, params={"arm": {"training": {"epochs": 1}}})
    assert Estimator(AMOUNTS, [odd]).estimate(job).basis == "estimated"


def test_light_jobs_of_another_study_measure_nothing():
    job = planned("score", outputs=("results/s/scores/a/seed1/x.json",), study="s", limit=None, code="a" * 16)
    other = sample(job, 99.0, outputs=("results/other/scores/a/seed1/x.json",))
    assert Estimator(AMOUNTS, [other]).estimate(job).basis == "assumed"
    own = sample(job, 2.0, outputs=("results/s/scores/b/seed1/x.json",))
    found = Estimator(AMOUNTS, [other, own]).estimate(job)
    assert (found.seconds, found.basis) == (2.0, "measured")
