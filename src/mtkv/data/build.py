"""The data stage: draw the questions of every dataset, write rows and test items, refuse any overlap.

In: the data section of a study and the dataset names. Out: `{train,val,calibration}.parquet` and `test/<dataset>.parquet`.
"""

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pandas as pd

from mtkv.data.pocket import pocket_task
from mtkv.data.rows import Question, rows_frame, test_frame
from mtkv.data.splits import assert_no_leakage, draw_questions, hashes_digest, question_hash
from mtkv.provenance.files import write_parquet

if TYPE_CHECKING:
    from mtkv.config.data import DataConfig

ROW_SPLITS = ("train", "val", "calibration")


def build_data(config: "DataConfig", datasets: list[str], folder: Path) -> dict[str, Any]:
    """Write the rows and test items under `folder` and return the facts for the card.

    Facts: `rows[split][dataset]`, `questions[split]`, `hashes[split]` (SHA-256 over the sorted question hashes) and
    `leakage` (shared questions for each pair of splits, all zero). Raises LeakageError when splits overlap, ValueError when
    a dataset is unknown or has too few questions.
    """
    frames, tests = draw_frames(config, datasets)
    facts = split_facts(frames, tests)
    for split, frame in frames.items():
        write_parquet(Path(folder) / f"{split}.parquet", frame)
    for dataset, frame in tests.items():
        write_parquet(Path(folder) / "test" / f"{dataset}.parquet", frame)
    return facts


def draw_frames(config: "DataConfig", datasets: list[str]) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """The rows of each split and the test items of each dataset, before anything is written."""
    wanted = {"train": config.train_rows, "val": config.validation_rows, "calibration": config.calibration_rows}
    shares = {split: _shares(-(-rows // len(config.styles)), len(datasets)) for split, rows in wanted.items()}
    questions: dict[str, list[Question]] = {split: [] for split in ROW_SPLITS}
    tests: dict[str, pd.DataFrame] = {}
    for index, dataset in enumerate(datasets):
        sizes = {split: shares[split][index] for split in ROW_SPLITS} | {"test": config.test_items}
        drawn = draw_questions(pocket_task(dataset), config.seed, sizes)
        tests[dataset] = test_frame(drawn["test"])
        for split in ROW_SPLITS:
            questions[split] += drawn[split]
    frames = {}
    for split, rows in wanted.items():
        # Datasets are mixed, so that the first rows (what a bounded evaluation reads) show all of them.
        Random(f"{config.seed}:{split}").shuffle(questions[split])
        frames[split] = rows_frame(questions[split], config.styles).head(rows)
    return frames, tests


def split_facts(frames: dict[str, pd.DataFrame], tests: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Counts, digests and the leakage check, all from the frames themselves: hashes are computed again from the questions."""
    questions = {split: list(frame["question"]) for split, frame in frames.items()}
    questions["test"] = [question for frame in tests.values() for question in frame["question"]]
    hashes = {split: {question_hash(question) for question in texts} for split, texts in questions.items()}
    counts = assert_no_leakage(hashes)
    rows = {
        split: {name: int(n) for name, n in frame["dataset"].value_counts().sort_index().items()}
        for split, frame in frames.items()
    }
    rows["test"] = {dataset: len(frame) for dataset, frame in tests.items()}
    return {
        "rows": rows,
        "questions": {split: len(found) for split, found in hashes.items()},
        "hashes": {split: hashes_digest(found) for split, found in hashes.items()},
        "leakage": counts,
    }


def _shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole parts that differ by at most one, larger ones first."""
    return [total // parts + (index < total % parts) for index in range(parts)]
