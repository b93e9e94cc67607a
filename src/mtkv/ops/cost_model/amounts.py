"""How much a study reads: rows of each split, tokens per row of each model, questions of each dataset; counted where possible."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtkv.config.study import Study

# Sizes of the whole benchmarks, for a study that sets no limit and has not made its data yet.
QUESTIONS = {
    "gsm8k": 1319,
    "math500": 500,
    "bbh": 6511,
    "gpqa": 448,
    "truthfulqa": 817,
    "cmmlu": 11582,
    "ceval": 1346,
}
# A question with its reasoning, where no card has a count: 38 were counted in the pocket study, 160 are assumed for real sources.
TOKENS_PER_ROW = {"pocket": 40, "multi_reasoning_cot_direct": 160}
STUDENT = "student"


@dataclass(frozen=True)
class Amounts:
    """Rows per split and questions per dataset. `tokens_per_row`: by teacher id and "student", those in `measured` counted by past runs;
    `student`: the params of a job that runs the student.
    """

    train: int
    validation: int
    calibration: int
    questions: dict[str, int]
    tokens_per_row: dict[str, float]
    measured: frozenset[str]
    student: dict[str, Any]

    @property
    def read(self) -> int:
        """Rows that a teacher reads in all."""
        return self.train + self.validation + self.calibration

    def tokens(self, model: str) -> float:
        """Tokens per row of a model."""
        return self.tokens_per_row.get(model) or self.tokens_per_row[STUDENT]


def amounts_of(study: "Study", cards: Sequence[dict[str, Any]], root: Path, data_stays: bool) -> Amounts:
    """The amounts of a study, with tokens from the `cards` of past runs. `data_stays`: the rows below `root` will not be made anew, so
    they are counted instead of taken from the config.
    """
    data = study.data
    wanted = {"train": data.train_rows, "val": data.validation_rows, "calibration": data.calibration_rows}
    rows = {split: _counted(root / f"data/{split}.parquet", data_stays) or count for split, count in wanted.items()}
    questions = {name: _questions(study, name, root, data_stays) for name in study.datasets}
    measured = _measured(cards)
    default = mean(measured.values()) if measured else float(TOKENS_PER_ROW[data.mixture])
    names = [STUDENT, *study.teachers.models]
    per_row = {name: measured.get(name, default) for name in names}
    student = {"config": study.student.model_dump(mode="json")}
    return Amounts(rows["train"], rows["val"], rows["calibration"], questions, per_row, frozenset(measured), student)


def _measured(cards: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Teacher id or "student" → tokens per row that past runs counted."""
    found: dict[str, float] = {}
    for card in cards:
        result, tokens = card.get("result") or {}, card.get("tokens")
        rows = result.get("rows_seen") if card["stage"] == "arms" else result.get("rows")
        if not tokens or not isinstance(rows, int) or not rows:
            continue
        if card["stage"] in ("arms", "teachers"):
            found[card["wildcards"].get("teacher", STUDENT)] = tokens / rows
    return found


def _questions(study: "Study", dataset: str, root: Path, data_stays: bool) -> int:
    data, limit = study.data, study.evaluation.limit
    wanted = data.subsets.get(dataset) or data.test_items or QUESTIONS.get(dataset, 1000)
    count = _counted(root / f"data/test/{dataset}.parquet", data_stays) or wanted
    return min(count, limit) if limit else count


def _counted(path: Path, data_stays: bool) -> int:
    if not data_stays or not path.is_file():
        return 0
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, ValueError):  # not a table: made by another tool, or half-copied
        return 0
