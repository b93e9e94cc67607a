"""The task files ask what the training rows taught, on the study's own questions."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from mtkv.data.items import Item
from mtkv.data.pocket import pocket_task
from mtkv.data.rows import Question, row
from mtkv.evaluate.lm_eval_tasks import TASK_FOLDER, load_tasks


def prompts(task):
    """Contexts of all requests, one per question, in order."""
    task.build_all_requests(limit=None, rank=0, world_size=1)
    return list(dict.fromkeys((request.doc["id"], request.args[0]) for request in task.instances))


def test_there_is_a_task_for_every_dataset(study_tools):
    assert {path.stem for path in TASK_FOLDER.glob("*.yaml")} == set(study_tools.datasets)


def test_prompts_are_those_of_the_training_rows(data_folder, study_tools):
    for dataset, task in load_tasks(study_tools.datasets, data_folder).items():
        test = pd.read_parquet(data_folder / "test" / f"{dataset}.parquet")
        expected = [
            (item, study_tools.expected_prompt(dataset, question))
            for item, question in zip(test["id"], test["question"], strict=True)
        ]
        assert prompts(task) == expected


def test_prompts_are_those_the_data_stage_writes(data_folder, study_tools):
    for dataset, task in load_tasks(study_tools.datasets, data_folder).items():
        pocket = pocket_task(dataset)
        assert (task.OUTPUT_TYPE == "generate_until") == (pocket.answering == "generation")
        task.build_all_requests(limit=None, rank=0, world_size=1)
        style = "cot" if pocket.answering == "generation" else "direct"
        for request in task.instances:
            item = Item(request.doc["question"], "because", request.doc["answer"], request.doc["cluster"])
            written = row(Question(dataset, pocket.language, 0, "", item), style)
            assert request.args[0] == written["prompt"]
            if style == "direct" and request.idx == request.doc["gold"]:
                assert request.args[1] == written["target"]


def test_prompt_and_choice_together_are_a_direct_training_row(data_folder, study_tools):
    for dataset, task in load_tasks(study_tools.choice, data_folder).items():
        task.build_all_requests(limit=None, rank=0, world_size=1)
        texts = {"".join(request.args) for request in task.instances if request.idx == request.doc["gold"]}
        test = pd.read_parquet(data_folder / "test" / f"{dataset}.parquet")
        space = "" if dataset in ("pocket_cmmlu", "pocket_ceval") else " "
        assert texts == {
            study_tools.expected_prompt(dataset, row.question) + space + row.answer for row in test.itertuples()
        }


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (" 1+2=3\nAnswer: 3", "3"),
        (" 1+2=3\nAnswer:3 ", "3"),
        (" x\nAnswer: x = 5\nAnswer: 6", "x = 5"),
        (" Answer", "[no answer]"),
        ("", "[no answer]"),
        (" Answer: ", ""),
    ],
)
def test_answer_is_what_follows_the_first_answer_mark(output, expected, data_folder):
    task = load_tasks(["pocket_gsm8k"], data_folder, limit=1)["pocket_gsm8k"]
    task.build_all_requests(limit=None, rank=0, world_size=1)
    task.instances[0].resps.append(output)
    task.apply_filters()
    assert task.instances[0].filtered_resps["answer"] == expected


def test_solved_examples_are_training_rows_in_front(data_folder, study_tools):
    train = pd.read_parquet(data_folder / "train.parquet")
    for dataset, task in load_tasks(study_tools.datasets, data_folder, num_fewshot=2, limit=3).items():
        style = "cot" if dataset in study_tools.generation else "direct"
        rows = train[(train["dataset"] == dataset) & (train["style"] == style)].head(2)
        front = "".join(f"{row.prompt}{row.target}\n\n" for row in rows.itertuples())
        for prompt, question in prompts_and_questions(task):
            assert prompt == front + study_tools.expected_prompt(dataset, question)


def prompts_and_questions(task):
    task.build_all_requests(limit=None, rank=0, world_size=1)
    return [(request.args[0], request.doc["question"]) for request in task.instances]


def test_too_few_training_rows_name_the_setting(data_folder):
    with pytest.raises(ValueError, match=r"evaluation.num_fewshot: 9 is more than the 8 cot rows of pocket_bbh"):
        load_tasks(["pocket_bbh"], data_folder, num_fewshot=9)


def test_unknown_dataset_names_the_known_ones(data_folder):
    with pytest.raises(ValueError, match=r"'gsm8k' has no lm-eval task.*pocket_gsm8k"):
        load_tasks(["gsm8k"], data_folder)


def test_task_files_say_they_are_synthetic_but_not_to_the_model():
    """lm-eval puts a task's `description` in front of every prompt, so the note must not be there."""
    for path in TASK_FOLDER.glob("*.yaml"):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert config["metadata"]["synthetic"] is True
        assert "Synthetic" in config["metadata"]["about"]
        assert "description" not in config


def test_new_questions_are_seen_and_the_home_folder_stays_empty(tmp_path, data_folder):
    """A rewritten test file is read anew, and nothing is kept outside the study."""
    (tmp_path / "data" / "test").mkdir(parents=True)
    source = pd.read_parquet(data_folder / "test" / "pocket_bbh.parquet")
    path = tmp_path / "data" / "test" / "pocket_bbh.parquet"
    program = (
        "import os, sys, pandas as pd; from pathlib import Path; from mtkv.evaluate.lm_eval_tasks import load_tasks\n"
        "folder = Path(sys.argv[1]); path = folder / 'test' / 'pocket_bbh.parquet'\n"
        "def first(): return load_tasks(['pocket_bbh'], folder)['pocket_bbh'].eval_docs[0]['question']\n"
        "before = first(); stat = path.stat(); frame = pd.read_parquet(path); frame['question'] = 'new'\n"
        "frame.to_parquet(path); os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))\n"
        "print(before == 'new', first() == 'new')"
    )
    source.to_parquet(path)
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "data")],
        env=environment | {"HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "True"]
    assert [file for file in home.rglob("*") if file.is_file()] == []
