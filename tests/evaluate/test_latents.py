"""The diagnostics of a latent student against every question asked by hand (`latent_by_hand`) and against its predictions."""

import latent_by_hand as by_hand
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mtkv.config.arms import TrainingConfig
from mtkv.config.latent import LatentConfig
from mtkv.evaluate.lm_eval_model import load_folder
from mtkv.evaluate.predictions import read_predictions
from mtkv.latent.evaluation.selected_positions import LatentTeaching
from mtkv.latent.model.interventions import Swapped
from mtkv.latent.model.student import LatentStudent
from mtkv.stages import diagnose_latents as latents
from mtkv.stages.diagnose_latents import diagnose_latents
from mtkv.stages.predict import ModelSource, predict

DATASETS = ["pocket_gpqa", "pocket_gsm8k"]
TRAINING = TrainingConfig(steps=1, eval_rows=4)
TOKENS = 5


@pytest.fixture(scope="module")
def folder(model_folders, tmp_path_factory):
    """Random weights, large enough for answers to differ."""
    tokenizer = AutoTokenizer.from_pretrained(model_folders["llama"])
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(model_folders["llama"], initializer_range=0.3)
    path = tmp_path_factory.mktemp("latent")
    LatentStudent.create(AutoModelForCausalLM.from_config(config), TOKENS, 2).save(path, tokenizer)
    return path


@pytest.fixture(scope="module")
def data(data_folder, tmp_path_factory):
    """The questions, and validation rows without a chain."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "test").symlink_to(data_folder / "test")
    rows = {
        "id": ["v"],
        "dataset": ["d"],
        "style": ["cot"],
        "prompt": ["Q:"],
        "target": ["\nAnswer: 1"],
        "answer": ["1"],
    }
    pd.DataFrame(rows | {"prompt_end": [2], "reasoning_end": [2]}).to_parquet(folder / "val.parquet")
    return folder


def diagnosed(folder, data, output, study_tools, datasets=DATASETS, **config):
    asked = study_tools.config(**config)
    facts = diagnose_latents(
        ModelSource(folder),
        LatentTeaching(training=TRAINING, latent=LatentConfig(tokens=TOKENS, iterations=2), kv=None, teachers=[]),
        datasets,
        data,
        asked,
        output,
        42,
    )
    return facts, *(pd.read_parquet(output / f"{name}.parquet") for name in ("accuracy", "decoded", "kept"))


@pytest.fixture(scope="module")
def found(folder, data, study_tools, tmp_path_factory):
    return diagnosed(folder, data, tmp_path_factory.mktemp("out"), study_tools)


def questions(data, dataset):
    return pq.read_table(data / f"test/{dataset}.parquet").to_pylist()


def correct(accuracy, dataset, condition, kept=TOKENS):
    part = accuracy[
        (accuracy["dataset"] == dataset) & (accuracy["condition"] == condition) & (accuracy["kept"] == kept)
    ]
    return part.set_index("item")["correct"].to_dict()


CHANGES = {
    ("none", TOKENS): lambda latents: latents,
    ("zeroed", TOKENS): torch.zeros_like,
    ("truncated", 2): lambda latents: latents[:2],
    ("truncated", 0): lambda latents: latents[:0],
}


def test_choices_under_every_condition_are_those_made_by_hand(found, folder, data, study_tools):
    _, accuracy, _, _ = found
    student, tokenizer = load_folder(folder)
    seen = set()
    for (condition, kept), change in CHANGES.items():
        expected = {}
        for question in questions(data, "pocket_gpqa"):
            asked = tokenizer(study_tools.expected_prompt("pocket_gpqa", question["question"]))["input_ids"]
            scores = [
                by_hand.log_likelihood(student, asked, tokenizer(f" {choice}")["input_ids"], change)[0]
                for choice in question["choices"]
            ]
            expected[question["id"]] = float(np.argmax(scores) == question["gold"])
        assert correct(accuracy, "pocket_gpqa", condition, kept) == expected
        seen.add(tuple(expected.values()))
    assert len(seen) > 2  # the conditions differ
    assert len(accuracy.groupby(["dataset", "condition", "kept"])) == 2 * 5


def test_as_they_are_is_what_predict_says_and_so_are_the_passes(found, folder, data, study_tools, tmp_path):
    facts, accuracy, _, _ = found
    outputs = {name: tmp_path / f"{name}.parquet" for name in DATASETS}
    predicted = predict(ModelSource(folder), data, study_tools.config(), outputs)
    for name in DATASETS:
        rows, _ = read_predictions(outputs[name])
        assert correct(accuracy, name, "none") == dict(zip(rows["item"], rows["correct"], strict=True))
        clusters = accuracy[accuracy["dataset"] == name].set_index("item")["cluster"].to_dict()
        assert clusters == dict(zip(rows["item"], rows["cluster"], strict=True))
        assert facts["passes_per_question"][name] == predicted["datasets"][name]["passes_per_question"]
        assert facts["items"][name] == study_tools.items
    assert (facts["failed"], facts["no_interventions"], facts["seed"]) == ({}, {}, 42)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_swapped_gives_each_question_the_latents_of_another(
    folder, data, study_tools, tmp_path, monkeypatch, batch_size
):
    taken, given, original = [], [], Swapped.__call__

    def watch(self, latents):
        taken.append(latents.clone())
        given.append(original(self, latents))
        return given[-1]

    monkeypatch.setattr(Swapped, "__call__", watch)
    diagnosed(folder, data, tmp_path, study_tools, ["pocket_gsm8k"], batch_size=batch_size, max_new_tokens=2)
    own, others = torch.cat(taken), torch.cat(given)
    assert len(own) == study_tools.items
    torch.testing.assert_close(others, own.roll(1, 0), atol=1e-4, rtol=1e-3)
    assert (others - own).abs().amax((1, 2)).min() > 1e-2


def test_decoded_tokens_are_those_of_the_lm_head_at_the_latents(found, folder, data, study_tools):
    _, _, decoded, _ = found
    student, tokenizer = load_folder(folder)
    asked = {
        question["id"]: tokenizer(study_tools.expected_prompt("pocket_gsm8k", question["question"]))["input_ids"]
        for question in questions(data, "pocket_gsm8k")
    }
    likely = []
    for ids in asked.values():
        logits = by_hand.next_logits(student, by_hand.inputs(student, ids))
        likely.append(logits[len(ids) + 1 : len(ids) + 1 + TOKENS].softmax(-1).numpy())
    likely = np.stack(likely)  # [questions, latents, vocabulary]
    order = (-likely).argsort(-1, kind="stable")[..., : latents.TOP]
    part = decoded[decoded["dataset"] == "pocket_gsm8k"]
    for number, item in enumerate(list(asked)[: latents.EXAMPLES]):
        single = part[part["item"] == item].sort_values(["slot", "rank"])
        assert single["token_id"].tolist() == order[number].ravel().tolist()
        assert single["probability"].to_numpy() == pytest.approx(
            likely[number, np.arange(TOKENS)[:, None], order[number]].ravel(), rel=1e-3
        )
        assert single["token"].tolist() == [tokenizer.decode([token]) for token in order[number].ravel()]
    assert set(part["item"].dropna()) == set(list(asked)[: latents.EXAMPLES])
    counted = np.zeros_like(likely)
    np.put_along_axis(counted, order, np.take_along_axis(likely, order, -1), -1)
    mean = counted.mean(0)
    for slot in range(TOKENS):
        own = part[part["item"].isna() & (part["slot"] == slot + 1)].sort_values("rank")
        assert own["probability"].to_numpy() == pytest.approx(np.sort(mean[slot])[::-1][: latents.TOP], rel=1e-3)
        assert mean[slot][own["token_id"]] == pytest.approx(own["probability"].to_numpy(), rel=1e-3)
        firsts = [(order[:, slot, 0] == token).mean() for token in own["token_id"]]
        assert own["first"].to_numpy() == pytest.approx(firsts)
        assert len(own) == latents.TOP


def test_only_the_first_questions_are_asked_and_a_single_one_is_not_swapped(
    folder, data, study_tools, tmp_path, monkeypatch
):
    monkeypatch.setattr(latents, "QUESTIONS", 3)
    facts, accuracy, *_ = diagnosed(folder, data, tmp_path / "three", study_tools, ["pocket_gpqa"], limit=7)
    assert facts["items"] == {"pocket_gpqa": 3}
    assert set(accuracy["item"]) == {question["id"] for question in questions(data, "pocket_gpqa")[:3]}
    _, accuracy, *_ = diagnosed(folder, data, tmp_path / "one", study_tools, ["pocket_gpqa"], limit=1)
    assert set(accuracy["condition"]) == {"none", "zeroed", "truncated"}


def test_a_dataset_that_cannot_be_answered_is_named_and_left_out(folder, data, study_tools, tmp_path):
    facts, accuracy, decoded, kept = diagnosed(folder, data, tmp_path, study_tools, max_new_tokens=250)
    assert list(facts["failed"]) == ["pocket_gsm8k"]
    assert set(accuracy["dataset"]) == set(decoded["dataset"]) == {"pocket_gpqa"}
    assert kept.empty


def test_a_model_that_lets_nobody_interfere_is_asked_as_it_is(model_folders, build_model, data, study_tools, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_folders["llama"])
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 256}
    model = build_model("mistral", initializer_range=0.3, eos_token_id=1, pad_token_id=0, **sizes)
    LatentStudent.create(model, TOKENS, 2).save(tmp_path / "model", tokenizer)
    facts, accuracy, *_ = diagnosed(tmp_path / "model", data, tmp_path / "out", study_tools, max_new_tokens=4)
    assert list(facts["no_interventions"]) == ["pocket_gpqa"]
    found = accuracy.groupby("dataset")["condition"].unique().apply(sorted).to_dict()
    assert found["pocket_gpqa"] == ["none"]
    assert found["pocket_gsm8k"] == ["none", "swapped", "truncated", "zeroed"]


def test_a_plain_model_is_refused(model_folders, data, study_tools, tmp_path):
    with pytest.raises(ValueError, match="not a latent student"):
        diagnosed(model_folders["llama"], data, tmp_path, study_tools)
