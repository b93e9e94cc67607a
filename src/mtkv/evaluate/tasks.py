"""lm-eval tasks over a study's own test files.

A task is a YAML file of `tasks/` in lm-eval's format; here its questions come from `data/test/<dataset>.parquet` of the
study at hand, read into memory. lm-eval's own way, `datasets.load_dataset`, would write a copy to a cache in the home
folder that parallel jobs share.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow.parquet as pq
import yaml
from lm_eval.api.task import ConfigurableTask

from mtkv.evaluate.styles import in_style

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
    of a document with the options as asked, where their order is not that of the study's rows.
    """

    metric: str
    filter: str
    options: tuple[str, ...] = ()

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
    config = in_style(yaml.safe_load(task_file(name).read_text(encoding="utf-8")), style)
    documents = pq.read_table(questions_file(data_folder, name)).slice(0, limit).to_pylist()
    if not documents:
        raise ValueError(f"{questions_file(data_folder, name)}: holds no questions")
    config["num_fewshot"] = num_fewshot
    if num_fewshot:
        config["fewshot_config"] = {
            "sampler": "first_n",
            "samples": _solved_examples(config, train_file(data_folder), num_fewshot),
        }
    return StudyTask(config, {config["test_split"]: datasets.Dataset.from_list(documents)}, documents)


def _solved_examples(config: dict[str, Any], path: Path, count: int) -> list[dict[str, Any]]:
    """Training rows in the shape of test documents, with the whole target in the place of the answer."""
    rows = pd.read_parquet(path, columns=["dataset", "style", "question", "target"])
    style = "cot" if config["output_type"] == "generate_until" else "direct"
    rows = rows[(rows["dataset"] == config["task"]) & (rows["style"] == style)].head(count)
    if len(rows) < count:
        raise ValueError(
            f"evaluation.num_fewshot: {count} is more than the {len(rows)} {style} rows of {config['task']} in {path}"
        )
    delimiter = config.get("target_delimiter", " ")  # lm-eval puts it back between the prompt and the answer
    targets = [target.removeprefix(delimiter) for target in rows["target"]]
    return [
        {"question": question, "choices": [target], "gold": 0, "answer": target}
        for question, target in zip(rows["question"], targets, strict=True)
    ]
