"""Our predictions and scores against lm-eval's command line: its own program, process, model class, batches and data loading.

One start answers everything: GSM8K with lm-eval's five examples (generation), TruthfulQA MC1 and subjects of CMMLU (log-likelihoods),
asked of the packaged pocket student. Files are in each benchmark's true schema; lm-eval's own task files are pointed at them.
"""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from benchmark_files import write_benchmarks
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtkv.config.data import DataConfig
from mtkv.config.models import ModelConfig
from mtkv.data.mixture import _write_tests
from mtkv.evaluate.lm_eval_tasks import LM_EVAL_FOLDER, RECIPES
from mtkv.evaluate.predictions import read_predictions
from mtkv.evaluate.scoring import ScoredRun, score
from mtkv.models.load import model_folder
from mtkv.stages.predict import ModelSource, predict

ITEMS, NEW_TOKENS = 10, 16
# lm-eval's task: (its file, our dataset, the item names that are its, its splits and files)
TASKS = {
    "gsm8k": ("gsm8k/gsm8k.yaml", "gsm8k", "gsm8k-", {"test": "gsm8k/test.jsonl", "train": "gsm8k/train.jsonl"}),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", "truthfulqa", "truthfulqa-", {"validation": "truthfulqa.jsonl"}),
} | {
    f"cmmlu_{subject}": (
        f"cmmlu/cmmlu_{subject}.yaml", "cmmlu", f"cmmlu-{subject}-",
        {"test": f"cmmlu/data/test/{subject}.csv", "dev": f"cmmlu/data/dev/{subject}.csv"},
    )
    for subject in ("agronomy", "college_law", "world_history")
}  # fmt: skip
DATASETS = ["gsm8k", "truthfulqa", "cmmlu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of the benchmarks, what our data stage makes of them, and the student with room for the longest prompt."""
    folder = tmp_path_factory.mktemp("cli")
    write_benchmarks(folder / "files", count=ITEMS)
    config = DataConfig(mixture="multi_reasoning_cot_direct", folder=str(folder / "files"))
    assert _write_tests(config, DATASETS, folder / "data")[2] == {}
    student = model_folder(ModelConfig(name="student"))
    model = AutoModelForCausalLM.from_pretrained(student, dtype="float32", max_position_embeddings=4096)
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(student).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    from mtkv.config.evaluation import EvaluationConfig

    settings = EvaluationConfig(batch_size=7, max_new_tokens=NEW_TOKENS, num_fewshot=None)
    outputs = {name: folder / f"{name}.parquet" for name in DATASETS}
    assert predict(ModelSource(folder / "model"), folder / "data", settings, outputs)["failed"] == {}
    scores = {}
    for name, path in outputs.items():
        test = folder / "data" / "test" / f"{name}.parquet"
        where = folder / f"{name}.json"
        score(ScoredRun("s", "a", 1, name), path, where, test)
        items = json.loads(where.read_text())["items"]
        scores[name] = dict(zip(items["id"], items["correct"], strict=True))
    return {name: read_predictions(path)[0].set_index("item") for name, path in outputs.items()}, scores


@pytest.fixture(scope="module")
def theirs(folder):
    """What `lm_eval run` logged and summed up: samples by task, and its results file."""
    (folder / "tasks").mkdir()
    for task, (file, _, _, splits) in TASKS.items():
        files = {split: as_lines(folder, name) for split, name in splits.items()}
        own = {"include": str(LM_EVAL_FOLDER / file), "task": f"local_{task}", "tag": None}
        own |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        (folder / "tasks" / f"{task}.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={folder / 'model'}",
    ]
    command += ["--tasks", ",".join(f"local_{task}" for task in TASKS), "--include_path", str(folder / "tasks")]
    command += ["--gen_kwargs", f"max_gen_toks={NEW_TOKENS}", "--batch_size", "4", "--device", "cpu"]
    command += ["--log_samples", "--output_path", str(folder / "out")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (results,) = (folder / "out").rglob("results_*.json")
    samples = {}
    for path in (folder / "out").rglob("samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        samples[path.name.removeprefix("samples_local_").rpartition("_")[0]] = rows
    return samples, json.loads(results.read_text())["results"]


def as_lines(folder, name):
    """A file that lm-eval can read: what is on the hub is parquet, in which options such as "None" and "0.50" are text."""
    if name.startswith("truthfulqa"):
        frame = pd.read_parquet(folder / "data" / "test" / "truthfulqa.parquet")
        (folder / name).write_text("".join(f"{document}\n" for document in frame["document"]), encoding="utf-8")
        return str(folder / name)
    path = folder / "files" / name
    if path.suffix != ".csv":
        return str(path)
    pd.read_csv(path, dtype=str, keep_default_na=False).to_json(
        path.with_suffix(".jsonl"), orient="records", lines=True
    )
    return str(path.with_suffix(".jsonl"))


@pytest.mark.parametrize("task", TASKS)
def test_the_command_line_says_the_same_to_the_last_item(task, ours, theirs):
    _, dataset, prefix, _ = TASKS[task]
    recipe = RECIPES[dataset if dataset != "truthfulqa" else "truthfulqa_mc1"]
    rows = ours[0][dataset]
    rows = rows[rows.index.str.startswith(prefix)]
    samples = sorted((s for s in theirs[0][task] if s["filter"] == recipe.filter), key=lambda sample: sample["doc_id"])
    assert len(samples) == len(rows) == (2 if dataset == "cmmlu" else ITEMS)
    for sample, (item, row) in zip(samples, rows.iterrows(), strict=True):
        assert sample["prompt_hash"] == row["prompt_hash"]
        assert sample[recipe.metric] == row["correct"] == ours[1][dataset][item]
        if dataset == "gsm8k":
            assert sample["resps"][0][0] == row["output"]
            assert sample["filtered_resps"][0] == row["filtered"]
        else:
            found = [float(response[0][0]) for response in sample["resps"]]
            assert found == pytest.approx(list(row["loglikelihoods"]), abs=1e-4)
    said = theirs[1][f"local_{task}"][f"{recipe.metric},{recipe.filter}"]
    assert said == pytest.approx(rows["correct"].mean())


def test_the_comparison_can_fail(ours):
    """Outputs differ from item to item, and the choices' likelihoods from each other: equality above is no accident."""
    assert ours[0]["gsm8k"]["output"].nunique() > 1
    assert ours[0]["truthfulqa"]["loglikelihoods"].map(lambda values: values.std()).min() > 0.1
    assert len({tuple(values) for values in ours[0]["cmmlu"]["loglikelihoods"]}) > 60
