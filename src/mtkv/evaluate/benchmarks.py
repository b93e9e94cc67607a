"""The seven benchmarks through lm-eval's own task files, on the records that the data stage wrote.

Prompt, few-shot examples, answer extraction and metric are lm-eval's; only where the records come from is ours, so nothing is
downloaded while a model answers. A benchmark of many parts (BBH, CMMLU, C-Eval) is one task for each part.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import lm_eval.tasks
import pyarrow.parquet as pq
from lm_eval.tasks._yaml_loader import load_yaml

from mtkv.data.benchmarks import BENCHMARKS
from mtkv.data.rows import STYLES
from mtkv.data.testsets import dropped_examples, unavailable
from mtkv.evaluate.styles import question_text
from mtkv.evaluate.tasks import StudyTask, UnanswerableError, examples_file, one_dataset, questions_file

if TYPE_CHECKING:
    from mtkv.config.evaluation import EvaluationConfig

LM_EVAL_FOLDER = Path(lm_eval.tasks.__file__).parent
# What lm-eval's `simple_evaluate` and command line set before they load tasks and draw examples.
RANDOM_SEED, FEWSHOT_SEED = 0, 1234
GPQA_OPTIONS = ("choice1", "choice2", "choice3", "choice4")


@dataclass(frozen=True)
class Recipe:
    """One of lm-eval's tasks: its file, with {part} where there are several, and the metric and filter that count.

    `options`: fields of a record that hold the options in the order they are asked, where that is not the study's.
    """

    file: str
    metric: str
    filter: str = "none"
    options: tuple[str, ...] = ()


RECIPES: dict[str, Recipe] = {
    "gsm8k": Recipe("gsm8k/gsm8k.yaml", "exact_match", "flexible-extract"),
    "gsm8k_cot_zeroshot": Recipe("gsm8k/gsm8k-cot-zeroshot.yaml", "exact_match", "flexible-extract"),
    "minerva_math500": Recipe("minerva_math/minerva_math500.yaml", "math_verify"),
    "hendrycks_math500": Recipe("hendrycks_math/hendrycks_math500.yaml", "exact_match"),
    "bbh_cot_zeroshot": Recipe("bbh/cot_zeroshot/{part}.yaml", "exact_match", "flexible-extract"),
    "bbh_zeroshot": Recipe("bbh/zeroshot/{part}.yaml", "exact_match", "flexible-extract"),
    "bbh_cot_fewshot": Recipe("bbh/cot_fewshot/{part}.yaml", "exact_match", "get-answer"),
    "gpqa_main_zeroshot": Recipe("gpqa/zeroshot/gpqa_main_zeroshot.yaml", "acc", options=GPQA_OPTIONS),
    "gpqa_main_n_shot": Recipe("gpqa/n_shot/gpqa_main_n_shot.yaml", "acc", options=GPQA_OPTIONS),
    "truthfulqa_mc1": Recipe("truthfulqa/truthfulqa_mc1.yaml", "acc"),
    "cmmlu": Recipe("cmmlu/cmmlu_{part}.yaml", "acc"),
    "ceval-valid": Recipe("ceval/ceval-valid_{part}.yaml", "acc"),
}
# What `evaluation.style: cot` asks instead, of the tasks that it is possible for.
COT_PROMPTS: dict[str, dict[str, Any]] = {"gsm8k": {"doc_to_text": question_text(STYLES["en", "cot"])}}


def is_benchmark(questions: Path) -> bool:
    """Whether a test file holds the records of a real benchmark."""
    return "document" in pq.read_schema(questions).names


def load_benchmark(task: str, name: str, data_folder: Path, config: "EvaluationConfig") -> list[StudyTask]:
    """lm-eval's tasks for the parts of a benchmark, on the first `config.limit` of its questions.

    Raises UnanswerableError with the reason when the benchmark could not be loaded, when there are fewer solved examples than are
    asked for, or when its task needs a package that is not installed. A part that lost examples to the leakage check has as many as
    are left.
    """
    recipe, path = RECIPES[task], questions_file(data_folder, name)
    if reason := unavailable(path):
        raise UnanswerableError(reason)
    questions = pq.read_table(path).slice(0, config.limit).to_pylist()
    examples = _by_part(pq.read_table(examples_file(data_folder, name)).to_pylist())
    dropped = dropped_examples(examples_file(data_folder, name))
    tasks = [
        _task(
            recipe,
            part,
            rows,
            [json.loads(row["document"]) for row in examples.get(part, [])] if BENCHMARKS[name].examples else None,
            dropped.get(part, 0),
            config.num_fewshot,
            COT_PROMPTS[task] if config.style == "cot" else {},
        )
        for part, rows in _by_part(questions).items()
    ]
    for loaded in tasks:
        loaded.metric, loaded.filter, loaded.options = recipe.metric, recipe.filter, recipe.options
    return tasks


def _task(
    recipe: Recipe,
    part: str,
    rows: list[dict[str, Any]],
    examples: list[Any] | None,
    dropped: int,
    num_fewshot: int | None,
    asked: Mapping[str, Any],
) -> StudyTask:
    file = LM_EVAL_FOLDER / recipe.file.format(part=part)
    try:
        config = load_yaml(file, resolve_func=True)
    except (ImportError, AssertionError) as error:
        said = " ".join(str(error).split())
        raise UnanswerableError(f"lm-eval's task {file.stem} needs packages that are not installed: {said}") from error
    config = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}
    config |= asked
    shots = _shots(config.get("num_fewshot"), num_fewshot)
    if examples is not None and shots > len(examples) + dropped:
        left_out = f" ({dropped} more are test questions or cannot be read)" if dropped else ""
        raise UnanswerableError(
            f"evaluation.num_fewshot: {shots} solved examples are asked for, {file.stem} has {len(examples)}{left_out}"
        )
    config["num_fewshot"] = shots if examples is None else min(shots, len(examples))
    documents = [json.loads(row["document"]) for row in rows]
    tested = config.get("test_split") or config["validation_split"]
    named = {config.get(key) for key in ("training_split", "validation_split", "fewshot_split")} - {None, tested}
    splits = {tested: documents} | (dict.fromkeys(named, examples) if examples else {})
    if not examples:  # nothing asks for the other splits: examples are lm-eval's own, or there are none
        config |= {key: None for key in ("training_split", "fewshot_split") if config.get(key) in named}
    return _seeded(config, splits, rows)


def _seeded(config: dict[str, Any], splits: Mapping[str, list[Any]], rows: list[dict[str, Any]]) -> StudyTask:
    """The task with records processed once, from the random state lm-eval has then: GPQA's task shuffles its options."""
    process = config.pop("process_docs", None)
    state = random.getstate()
    random.seed(RANDOM_SEED)
    try:
        with one_dataset(f"records of {config['task']}"):
            loaded = {name: datasets.Dataset.from_list(records) for name, records in splits.items()}
            if process is not None:
                loaded = {name: process(records) for name, records in loaded.items()}
    finally:
        random.setstate(state)
    task = StudyTask(config, loaded, rows)
    task.set_fewshot_seed(FEWSHOT_SEED)
    return task


def _shots(of_task: int | None, wanted: int | None) -> int:
    """lm-eval's rule: a task that says 0 keeps it, whatever is asked for."""
    return of_task or 0 if wanted is None or of_task == 0 else wanted


def _by_part(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    return parts
