"""Datasets asked for the reason first (`evaluation.style: cot`): prompts are those of rows with a chain, answers are read from text."""

import pandas as pd
import pytest
from lm_eval.evaluator import evaluate
from lm_eval.models.dummy import DummyLM

from mtkv.config.evaluation import EvaluationConfig
from mtkv.data.items import Item
from mtkv.data.pocket import pocket_task
from mtkv.data.rows import Question, row
from mtkv.evaluate.answer_rows import answer_row, rules_of
from mtkv.evaluate.lm_eval_tasks import COT_PROMPTS, in_style, load_tasks
from mtkv.evaluate.predictions import write_predictions
from mtkv.evaluate.scoring import ScoredRun, score
from mtkv.stages.predict import study_tasks


def asked(tasks):
    for task in tasks.values():
        task.build_all_requests(limit=None, rank=0, world_size=1)
    return {name: [(request.doc, request.args[0]) for request in task.instances] for name, task in tasks.items()}


def test_every_dataset_is_asked_as_rows_with_a_chain_are_written(data_folder, study_tools):
    for dataset, requests in asked(load_tasks(study_tools.datasets, data_folder, style="cot")).items():
        language = pocket_task(dataset).language
        for doc, prompt in requests:
            item = Item(doc["question"], "because", doc["answer"], doc["cluster"])
            assert prompt == row(Question(dataset, language, 0, "", item), "cot")["prompt"]
        assert len(requests) == len({doc["id"] for doc, _ in requests})  # one request each, where choices had four


def test_tasks_that_generate_stay_as_they_are(data_folder, study_tools):
    as_before = load_tasks(["pocket_gsm8k"], data_folder)["pocket_gsm8k"]
    in_chains = load_tasks(["pocket_gsm8k"], data_folder, style="cot")["pocket_gsm8k"]
    assert as_before.dump_config() == in_chains.dump_config()


class Saying(DummyLM):
    """Says to each question what `words` makes of it."""

    def __init__(self, words):
        super().__init__()
        self.words = words

    def generate_until(self, requests, disable_tqdm=False):
        return [self.words(request.doc) for request in requests]


SAID = {
    "right": lambda doc: f" because\n{announced(doc)}{doc['answer']}",
    "right after latents": lambda doc: f"\n{announced(doc)}{doc['answer']}\n",
    "wrong": lambda doc: f" because\n{announced(doc)}{next(c for c in doc['choices'] if c != doc['answer'])}",
    "nothing": lambda doc: f" {doc['answer']}",
}


def announced(doc):
    return "答案：" if "选项" in doc["question"] else "Answer: "


@pytest.mark.parametrize("said", SAID)
def test_choices_are_scored_by_what_was_said(data_folder, study_tools, tmp_path, said):
    names = [name for name in study_tools.datasets if pocket_task(name).answering != "generation"]
    for name, task in load_tasks(names, data_folder, limit=4, style="cot").items():
        found = evaluate(Saying(SAID[said]), {"tasks": {name: task}}, bootstrap_iters=0, log_samples=True)
        rows = [answer_row(task, sample) for sample in found["samples"][name]]
        assert {row["correct"] for row in rows} == {float(said.startswith("right"))}
        assert all(row["loglikelihoods"] is None for row in rows)
        write_predictions(tmp_path / "p.parquet", rows, task.metric)
        result = score(
            ScoredRun("x", "latent", 1, name),
            tmp_path / "p.parquet",
            tmp_path / "s.json",
            data_folder / "test" / f"{name}.parquet",
            4,
        )
        assert (result["accuracy"], result["metric"]) == (float(said.startswith("right")), "exact_match")


def test_a_verdict_that_does_not_follow_from_what_was_said_has_no_score(data_folder, tmp_path):
    task = load_tasks(["pocket_ceval"], data_folder, limit=1, style="cot")["pocket_ceval"]
    found = evaluate(Saying(SAID["wrong"]), {"tasks": {"pocket_ceval": task}}, bootstrap_iters=0, log_samples=True)
    rows = [answer_row(task, sample) | {"correct": 1.0} for sample in found["samples"]["pocket_ceval"]]
    write_predictions(tmp_path / "p.parquet", rows, task.metric, {task.part: rules_of(task)})
    result = score(
        ScoredRun("x", "latent", 1, "pocket_ceval"),
        tmp_path / "p.parquet",
        tmp_path / "s.json",
        data_folder / "test" / "pocket_ceval.parquet",
        1,
    )
    assert (result["status"], result["accuracy"]) == ("failed", None)
    assert "correct does not follow" in result["reason"]


def test_examples_show_the_chain_too(data_folder):
    task = load_tasks(["pocket_gpqa"], data_folder, num_fewshot=2, limit=1, style="cot")["pocket_gpqa"]
    ((_, prompt),) = asked({"pocket_gpqa": task})["pocket_gpqa"]
    assert prompt.count("\nReason:") == 3
    assert prompt.count("\nAnswer: ") == 2


def test_the_style_of_the_config_is_the_one_that_is_asked(data_folder):
    (task,) = study_tasks("pocket_cmmlu", data_folder, EvaluationConfig(style="cot"))
    assert task.OUTPUT_TYPE == "generate_until"
    (task,) = study_tasks("pocket_cmmlu", data_folder, EvaluationConfig())
    assert task.OUTPUT_TYPE == "multiple_choice"


def test_a_task_with_another_prompt_is_refused():
    with pytest.raises(ValueError, match="is not that of a row"):
        in_style({"task": "x", "doc_to_text": "Q: {{question}}"}, "cot")


def test_gsm8k_is_asked_as_its_rows_are_written():
    written = row(Question("gsm8k", "en", 0, "", Item("How many?", "3+4=7.", "7", "x")), "cot")
    assert COT_PROMPTS["gsm8k"]["doc_to_text"].replace("{{question}}", "How many?") == written["prompt"]
    assert pd.notna(written["prompt_end"])
