"""The recipe in small: a few steps leave complete folders, the same seed the same files, training sees no test question."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from random import Random

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from mtkv.data.pocket import TASKS
from mtkv.data.splits import question_hash, split_of
from mtkv.models import pocket_recipe as recipe
from mtkv.models import pocket_training
from mtkv.models.paths import pocket_folder
from mtkv.models.pocket_recipe import (
    MODELS,
    collect_recipes,
    file_digests,
    make_pocket_models,
    make_tokenizer,
    untrained_model,
)
from mtkv.models.pocket_training import Schedule, measure, rows_loss, training_texts
from mtkv.models.tokenization import encode_rows


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One thread; few rows drawn for the few batches of these tests, and short answers of models that know nothing."""
    torch.set_num_threads(1)
    monkeypatch.setattr(pocket_training, "BATCHES_AT_ONCE", 3)
    monkeypatch.setattr(pocket_training, "NEW_TOKENS", 8)


@pytest.mark.parametrize("name", MODELS)
def test_two_runs_of_one_seed_give_the_same_files(name, tmp_path):
    for run in ("one", "two"):
        make_pocket_models(tmp_path / run, seed=3, names=[name], steps=2, test_items=2)
    recipes = [json.loads((tmp_path / run / "recipe.json").read_text()) for run in ("one", "two")]
    assert recipes[0]["models"][name]["sha256"] == recipes[1]["models"][name]["sha256"]
    assert recipes[0]["models"][name]["sha256"] == file_digests(tmp_path / "one" / name)
    assert set(recipes[0]["models"][name]["accuracy"]) == {*TASKS, "macro"}


def test_models_made_one_by_one_are_recorded_together(tmp_path):
    make_pocket_models(tmp_path, names=["student"], steps=1, test_items=1)
    record = make_pocket_models(tmp_path, names=["gpt2"], steps=1, test_items=1)
    assert set(record["models"]) == {"student", "gpt2"}


def test_records_of_models_made_apart_are_joined_and_different_seeds_are_refused(tmp_path):
    for name, seed in (("student", 0), ("gpt2", 0), ("qwen2", 1)):
        make_pocket_models(tmp_path / name, seed=seed, names=[name], steps=1, test_items=1)
    records = {name: tmp_path / name / "recipe.json" for name in ("student", "gpt2", "qwen2")}
    collect_recipes([records["student"], records["gpt2"]], tmp_path / "all.json")
    joined = json.loads((tmp_path / "all.json").read_text())
    assert joined["models"] == {
        name: json.loads(records[name].read_text())["models"][name] for name in ("student", "gpt2")
    }
    with pytest.raises(ValueError, match="different seeds"):
        collect_recipes(list(records.values()), tmp_path / "all.json")


def test_training_texts_come_from_the_train_bins_in_both_styles():
    styles = Counter()
    for prompt, _ in islice(training_texts(Random(5)), 400):
        head, last = prompt.rsplit("\n", 1)
        question = head.removeprefix("Question: ").removeprefix("问题：")
        assert split_of(question_hash(question)) == "train"
        styles[last] += 1
    assert set(styles) == {"Reason:", "Answer:", "推理：", "答案："}


@pytest.mark.parametrize("name", [name for name, pocket in MODELS.items() if pocket.tasks])
def test_an_expert_reads_its_own_tasks_only_and_goes_on_from_the_student(name, tmp_path):
    questions = {TASKS[task].language for task in MODELS[name].tasks}
    texts = [prompt for prompt, _ in islice(training_texts(Random(5), MODELS[name].tasks), 200)]
    languages = {"zh" if prompt.startswith("问题") else "en" for prompt in texts}
    assert languages == questions
    recipe.make_model(replace(MODELS[name], schedule=replace(MODELS[name].schedule, steps=0)), 0, tmp_path / name, 1)
    ours, start = (load_file(folder / "model.safetensors") for folder in (tmp_path / name, pocket_folder("student")))
    assert all(np.array_equal(ours[key], start[key]) for key in start)


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_of_a_batch_equals_that_of_each_row_alone(name):
    """Against transformers' own loss on unpadded rows whose prompt labels are masked by hand."""
    tokenizer = make_tokenizer(MODELS[name], 0)
    torch.manual_seed(0)
    model = untrained_model(MODELS[name], tokenizer).eval()
    pairs = list(islice(training_texts(Random(1)), 5))
    rows = encode_rows(tokenizer, [prompt for prompt, _ in pairs], [target for _, target in pairs], None)
    total, count = 0.0, 0
    for (prompt, target), row in zip(pairs, rows, strict=True):
        ids = torch.tensor([[*tokenizer(prompt + target)["input_ids"], tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[0, : len(tokenizer(prompt)["input_ids"])] = -100
        assert np.array_equal(row.input_ids, ids[0].numpy())
        supervised = int((labels != -100).sum())
        total, count = total + model(input_ids=ids, labels=labels).loss.item() * supervised, count + supervised
    assert rows_loss(model, rows, tokenizer.eos_token_id).item() == pytest.approx(total / count, rel=1e-4)


def test_learning_rate_rises_then_falls_to_a_tenth():
    schedule = Schedule(steps=100, batch_size=1, learning_rate=1.0, warmup=10)
    rates = [schedule.rate(step) for step in range(101)]
    assert rates[9] == max(rates) == 1.0
    assert np.all(np.diff(rates[:10]) > 0)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.parametrize("kind", sorted({pocket.tokenizer for pocket in MODELS.values()}))
def test_tokenizers_are_trained_alike_every_time(kind):
    pocket = next(pocket for pocket in MODELS.values() if pocket.tokenizer == kind)
    one, two = (make_tokenizer(pocket, 0).backend_tokenizer.to_str() for _ in range(2))
    assert one == two
    assert Tokenizer.from_str(one).get_vocab_size() == pocket.vocabulary


class Oracle(torch.nn.Module):
    """Knows every right answer of a measured test and says it; or always says something else."""

    def __init__(self, tokenizer, right: bool) -> None:
        super().__init__()
        self.tokenizer, self.right = tokenizer, right

    def generate(self, input_ids, **_):
        texts = [self._answer(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in input_ids]
        new = self.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
        return torch.cat([input_ids, new], dim=1)

    def _answer(self, prompt: str) -> str:
        answer = ANSWERS[prompt.removeprefix("Question: ").removesuffix("\nReason:")]
        return f" because.\nAnswer: {answer if self.right else answer + '0'}"

    def forward(self, input_ids):
        """Likes the tokens of a row that ends in its right option, dislikes those of any other row."""
        logits = torch.zeros(*input_ids.shape, len(self.tokenizer))
        for index, ids in enumerate(input_ids):
            prompt, _, option = self.tokenizer.decode(ids, skip_special_tokens=True).rpartition("\n")
            question = prompt.removeprefix("Question: ").removeprefix("问题：")
            good = option in (f"Answer: {ANSWERS[question]}", f"答案：{ANSWERS[question]}")
            logits[index].scatter_(-1, ids.roll(-1)[:, None], 5.0 if good == self.right else -5.0)
        return type("Output", (), {"logits": logits})


ANSWERS: dict[str, str] = {}


@pytest.mark.parametrize(("right", "expected"), [(True, 1.0), (False, 0.0)])
def test_measure_of_an_oracle(right, expected):
    from mtkv.data.splits import draw_questions

    for task in TASKS.values():
        for question in draw_questions(task, 0, {"test": 3})["test"]:
            ANSWERS[question.item.question] = question.item.answer
    tokenizer = make_tokenizer(MODELS["student"], 0)
    assert measure(Oracle(tokenizer, right), tokenizer, test_items=3)["macro"] == expected
