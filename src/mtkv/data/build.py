"""The data stage: questions of every source and data set, rows and test items, and no overlap between them.

In: the data section of a study and the dataset names. Out: `{train,val,calibration}.parquet` and `test/<dataset>.parquet`, for
real benchmarks also `examples/<dataset>.parquet`. `fetch_data` gets what is needed for it from the hub into `data.folder`, once and on a
machine with network.
"""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd

from mtkv.config.data import DataConfig
from mtkv.data.benchmarks import benchmark_of
from mtkv.data.loading import DataFileError, Origin, fetch
from mtkv.data.mixture import build_mixture
from mtkv.data.pocket import pocket_task
from mtkv.data.rows import Question, check_rows, rows_frame, test_frame
from mtkv.data.sources import DEFAULT_SOURCES, source_of
from mtkv.data.splits import draw_questions, split_facts
from mtkv.data.testsets import write_own
from mtkv.provenance.files import write_parquet

ROW_SPLITS = ("train", "val", "calibration")


def build_data(config: DataConfig, datasets: list[str], folder: Path) -> dict[str, Any]:
    """Write the rows and test items under `folder` and return the facts for the card.

    Facts: `rows[split][dataset]`, `questions[split]` (counts), `hashes[split]` (SHA-256 over the sorted question hashes) and
    `leakage` (shared questions for each pair of splits, all zero); for the mixture of real sources also what was left out and
    why. Raises LeakageError when splits overlap, ValueError when a dataset is unknown, absent or has too few questions.
    """
    facts = BUILDERS[config.mixture](config, datasets, Path(folder))
    for split in ROW_SPLITS:
        path = Path(folder) / f"{split}.parquet"
        check_rows(pd.read_parquet(path, columns=["id", "target"]), str(path))
    return facts


def build_pocket(config: DataConfig, datasets: list[str], folder: Path) -> dict[str, Any]:
    """`build_data` for the synthetic tasks of this package."""
    frames, tests = draw_frames(config, datasets)
    facts = split_facts(frames, tests)
    for split, frame in frames.items():
        write_parquet(Path(folder) / f"{split}.parquet", frame)
    for dataset, frame in tests.items():
        path = Path(folder) / "test" / f"{dataset}.parquet"
        if own := config.extra.get(dataset):
            write_own(path, frame, own)
        else:
            write_parquet(path, frame)
    return facts


def draw_frames(config: DataConfig, datasets: list[str]) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """The rows of each split and the test items of each dataset, before anything is written."""
    wanted = {"train": config.train_rows, "val": config.validation_rows, "calibration": config.calibration_rows}
    sources = config.sources or datasets
    shares = {
        split: dict(zip(sources, _shares(-(-rows // len(config.styles)), len(sources)), strict=True))
        for split, rows in wanted.items()
    }
    questions: dict[str, list[Question]] = {split: [] for split in ROW_SPLITS}
    tests: dict[str, pd.DataFrame] = {}
    for dataset in datasets:
        sizes = {split: shares[split].get(dataset, 0) for split in ROW_SPLITS} | {"test": config.test_items or 0}
        drawn = draw_questions(pocket_task(dataset, config.extra), config.seed, sizes)
        tests[dataset] = test_frame(_scored(config, dataset, drawn["test"], sizes["val"]))
        for split in ROW_SPLITS:
            questions[split] += drawn[split]
    frames = {}
    for split, rows in wanted.items():
        # Datasets are mixed, so that the first rows (what a bounded evaluation reads) show all of them.
        Random(f"{config.seed}:{split}").shuffle(questions[split])
        frames[split] = rows_frame(questions[split], config.styles).head(rows)
    return frames, tests


def _scored(config: DataConfig, dataset: str, test: list[Question], validation: int) -> list[Question]:
    """The questions of a dataset that runs are scored on: those of the test split, or as many of the validation split behind its first
    `validation` questions, which are validation rows."""
    if config.evaluate_on == "test":
        return test
    return draw_questions(pocket_task(dataset, config.extra), config.seed, {"val": validation + len(test)})["val"][
        validation:
    ]


def _shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole parts that differ by at most one, larger ones first."""
    return [total // parts + (index < total % parts) for index in range(parts)]


BUILDERS: dict[str, Callable[[DataConfig, list[str], Path], dict[str, Any]]] = {
    "pocket": build_pocket,
    "multi_reasoning_cot_direct": build_mixture,
}


def wanted_splits(config: DataConfig, datasets: list[str]) -> list[tuple[Origin, str]]:
    """Data sets and splits that the sources of a study and the benchmarks `datasets` need, each once."""
    sources = [source_of(name, config.extra) for name in config.sources or DEFAULT_SOURCES]
    needed = [(source.origin, source.split) for source in sources]
    for benchmark in (benchmark_of(name, config.extra) for name in datasets):
        needed += [(benchmark.origin, split) for split in (benchmark.split, benchmark.examples) if split]
    return list(dict.fromkeys(needed))


def fetch_data(config: DataConfig, datasets: list[str]) -> dict[str, Any]:
    """Fetch every wanted split that `data.folder` lacks. Returns `files` (sizes in bytes by name) and `missing` (reasons by name).

    A failure does not stop the others from being fetched. Nothing is fetched for mixture pocket, or without `data.folder`: then the
    hub's own cache is used.
    """
    files: dict[str, int] = {}
    missing: dict[str, str] = {}
    if config.folder is None:
        return {"files": files, "missing": missing}
    for origin, split in wanted_splits(config, datasets):
        try:
            fetched = fetch(origin, split, Path(config.folder), config.revisions.get(origin.name))
        except DataFileError as error:
            missing[f"{origin.name} {split}"] = str(error)
            continue
        files |= {str(path): path.stat().st_size for path in fetched}
    return {"files": files, "missing": missing}
