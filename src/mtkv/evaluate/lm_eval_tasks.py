"""lm-eval tasks over a study's own test files, `data/test/<dataset>.parquet`: the small ones of `tasks/` and seven real benchmarks.

In: a dataset's name and the folder of the data stage. Out: a `StudyTask` for each of its parts, its questions read into memory: lm-eval's
own way, `datasets.load_dataset`, would download while a model answers and write to a cache in the home folder that parallel jobs share.

A small task is a YAML file of `tasks/` in lm-eval's format. A benchmark uses lm-eval's own task file: prompt, few-shot examples, answer
extraction and metric are lm-eval's. One of many parts (BBH, CMMLU, C-Eval) is one task for each part.

`evaluation.style: cot` asks each question as rows of style `cot` are written: a student that was trained on such rows only, with its chain
or with latents in place of it, has never seen "Answer:" behind a question. So a task of choices is asked for the reason too, and the
answer it says is compared with the right one as text.
"""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pyarrow.parquet as pq
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from mtkv.config.evaluation import EvaluationConfig
from mtkv.data.benchmarks import BENCHMARKS, Recipe, benchmark_of
from mtkv.data.items import Task
from mtkv.data.pocket import TASKS, pocket_task
from mtkv.data.rows import STYLES, Style
from mtkv.data.testsets import dropped_examples, own_path, unavailable
from mtkv.evaluate.examples import leave_out_asked, solved_examples

NO_ANSWER = "[no answer]"
GENERATED = {
    "output_type": "generate_until",
    "doc_to_target": "answer",
    "target_delimiter": " ",
    "generation_kwargs": {"until": ["\n\n"], "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
OF_CHOICES = ("doc_to_choice",)


def in_style(config: dict[str, Any], style: str) -> dict[str, Any]:
    """The config of one of our lm-eval tasks, asked in `style`; one that already asks so stays as it is.

    Raises ValueError for a task whose prompt is that of no row.
    """
    if style == "task":
        return config
    language = next((name for (name, _), row in STYLES.items() if question_text(row) == config["doc_to_text"]), None)
    if language is None:
        raise ValueError(
            f"{config['task']}: its prompt {config['doc_to_text']!r} is not that of a row; style must be task"
        )
    row = STYLES[language, style]
    if question_text(row) == config["doc_to_text"]:
        return config
    kept = {key: value for key, value in config.items() if key not in OF_CHOICES}
    return kept | GENERATED | {"doc_to_text": question_text(row), "filter_list": [answer_filter(row)]}


def config_of(task: Task) -> dict[str, Any]:
    """A small task as lm-eval's config: asked for the reason and the answer behind it, or for one of its choices."""
    common = {
        "task": task.name,
        "dataset_path": "parquet",
        "test_split": "test",
        "metadata": {"version": 1.0, "synthetic": True},
    }
    if task.answering == "generation":
        row = STYLES[task.language, "cot"]
        return common | GENERATED | {"doc_to_text": question_text(row), "filter_list": [answer_filter(row)]}
    choices = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
    delimiter = "" if task.language == "zh" else " "
    metric = {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
    asked = {"doc_to_text": question_text(STYLES[task.language, "direct"]), "target_delimiter": delimiter}
    return common | choices | asked | metric


def question_text(row: Style) -> str:
    """The prompt of a row as lm-eval's template of a document."""
    return row.prompt.format(question="{{question}}")


def answer_filter(row: Style) -> dict[str, Any]:
    """lm-eval's filter for what stands behind the words that announce the answer, to the end of the line."""
    announced = row.answer.format(answer="").strip()
    extract = {"function": "regex", "regex_pattern": f"{re.escape(announced)} *(.+)", "group_select": 0}
    return {"name": "answer", "filter": [extract | {"fallback": NO_ANSWER}, {"function": "take_first"}]}


TASK_FOLDER = Path(__file__).resolve().parent / "tasks"


class UnanswerableError(Exception):
    """One dataset can't be answered by this model; others may be."""


@contextmanager
def one_dataset(doing: str) -> Iterator[None]:
    """Any error of lm-eval's own code about a record or an answer is the dataset's: it cannot be answered, the run goes on.

    BBH's filter for numbers, for example, raises ValueError for the answer "one thousand thousand".
    """
    try:
        yield
    except UnanswerableError:
        raise
    except Exception as error:
        raise UnanswerableError(f"{doing} failed in lm-eval: {type(error).__name__}: {error}") from error


class StudyTask(ConfigurableTask):
    """A task of a YAML file whose documents are given, by split. `questions` are the study's rows of the tested ones, in order.

    `metric` and `filter` name the numbers of lm-eval's log that count: which metric, of which answer extraction. `options`: fields
    of a document with the options as asked, where their order is not that of the study's rows. `own_examples`: of lm-eval's own solved
    examples, how many there are and how many are questions asked here (`leave_out_asked`); empty for none.
    """

    metric: str
    filter: str
    options: tuple[str, ...] = ()
    own_examples: tuple[int, ...] = ()

    def __init__(
        self, config: dict[str, Any], splits: Mapping[str, datasets.Dataset], questions: list[dict[str, Any]]
    ) -> None:
        self._splits = dict(splits)
        self.questions = questions
        with one_dataset(f"task {config['task']}"):
            super().__init__(config=config)
        self.metric = self.config.metric_list[0]["metric"]
        self.filter = self._filters[0].name

    @property
    def part(self) -> str:
        """The part of its dataset that the task asks, "" where a dataset has none."""
        return self.questions[0].get("part", "")

    def fewshot_context(self, *args: Any, **options: Any) -> Any:
        """lm-eval's prompt of one question."""
        with one_dataset(f"prompts of {self.config.task}"):
            return super().fewshot_context(*args, **options)

    def apply_filters(self) -> Any:
        """lm-eval's answers, taken out of all outputs."""
        with one_dataset(f"taking answers of {self.config.task}"):
            return super().apply_filters()

    def process_results(self, doc: Any, results: Any) -> Any:
        """lm-eval's verdict on one answer."""
        with one_dataset(f"comparing an answer of {self.config.task}"):
            return super().process_results(doc, results)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Replaces lm-eval's download: the documents are here already."""
        self.dataset = self._splits


def load_tasks(
    names: Sequence[str],
    data_folder: Path,
    num_fewshot: int | None = 0,
    limit: int | None = None,
    style: str = "task",
) -> dict[str, StudyTask]:
    """The tasks of the datasets `names`, on the first `limit` questions (None: all) of `data_folder`/test, asked in `style`.

    Solved examples, when asked for, are the first `num_fewshot` training rows of the dataset in the task's own style,
    the same for every question. Raises ValueError for an unknown dataset, an empty test file or too few training rows.
    """
    return {name: _load_task(name, Path(data_folder), num_fewshot or 0, limit, style) for name in names}


def task_file(name: str) -> Path:
    """The YAML file of a dataset. Raises ValueError for a dataset without one."""
    path = TASK_FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in TASK_FOLDER.glob("*.yaml")))
        raise ValueError(f"datasets: {name!r} has no lm-eval task, it is not one of {known}")
    return path


def questions_file(data_folder: Path, name: str) -> Path:
    """The questions of a dataset."""
    return Path(data_folder) / "test" / f"{name}.parquet"


def examples_file(data_folder: Path, name: str) -> Path:
    """The records that a real benchmark's few-shot prompts are made of."""
    return Path(data_folder) / "examples" / f"{name}.parquet"


def train_file(data_folder: Path) -> Path:
    """The training rows, where solved examples come from."""
    return Path(data_folder) / "train.parquet"


def _load_task(name: str, data_folder: Path, num_fewshot: int, limit: int | None, style: str) -> StudyTask:
    config = in_style(_config(name, questions_file(data_folder, name)), style)
    documents = pq.read_table(questions_file(data_folder, name)).slice(0, limit).to_pylist()
    if not documents:
        raise ValueError(f"{questions_file(data_folder, name)}: holds no questions")
    config["num_fewshot"] = num_fewshot
    if num_fewshot:
        config["fewshot_config"] = {
            "sampler": "first_n",
            "samples": solved_examples(config, train_file(data_folder), num_fewshot),
        }
    return StudyTask(config, {config["test_split"]: datasets.Dataset.from_list(documents)}, documents)


def _config(name: str, questions: Path) -> dict[str, Any]:
    """A small task in lm-eval's format: its YAML file, or what follows from its `Task` where it has none."""
    own = own_path(questions) if questions.is_file() else None
    if own or (name in TASKS and not (TASK_FOLDER / f"{name}.yaml").is_file()):
        return config_of(pocket_task(name, {name: own} if own else None))
    loaded: dict[str, Any] = yaml.safe_load(task_file(name).read_text(encoding="utf-8"))
    return loaded


LM_EVAL_FOLDER = Path(lm_eval.tasks.__file__).parent
# What lm-eval's `simple_evaluate` and command line set before they load tasks and draw examples.
RANDOM_SEED, FEWSHOT_SEED = 0, 1234


RECIPES = {task: recipe for benchmark in BENCHMARKS.values() for task, recipe in benchmark.tasks.items()}
# What `evaluation.style: cot` asks instead, of the tasks that it is possible for.
COT_PROMPTS: dict[str, dict[str, Any]] = {"gsm8k": {"doc_to_text": question_text(STYLES["en", "cot"])}}


def is_benchmark(questions: Path) -> bool:
    """Whether a test file holds the records of a real benchmark."""
    return "document" in pq.read_schema(questions).names


def load_benchmark(task: str | None, name: str, data_folder: Path, config: EvaluationConfig) -> list[StudyTask]:
    """lm-eval's tasks for the parts of a benchmark, on the first `config.limit` of its questions; `task` None: its first.

    Raises UnanswerableError with the reason when the benchmark could not be loaded, when there are fewer solved examples than are
    asked for, or when its task needs a package that is not installed. A part that lost examples to the leakage check has as many as
    are left.
    """
    path = questions_file(data_folder, name)
    own = own_path(path)
    benchmark = benchmark_of(name, {name: own} if own else {})
    recipe = benchmark.tasks[task] if task else next(iter(benchmark.tasks.values()))
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
            [json.loads(row["document"]) for row in examples.get(part, [])] if benchmark.examples else None,
            dropped.get(part, 0),
            config.num_fewshot,
            COT_PROMPTS.get(task or "", {}) if config.style == "cot" else {},
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
    task = _seeded(config, splits, rows)
    if examples is None and shots:
        with one_dataset(f"examples of {config['task']}"):
            task.own_examples = leave_out_asked(task)
    return task


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
