"""Item-level correctness of one dataset: a predictions file comes in, the score file that a user asks for goes out.

Needs neither torch nor lm-eval. What lm-eval called correct is checked again from the raw columns, and the items must
be exactly the dataset's; where this second look contradicts, the dataset has no score but the reason. The interval is Wilson's
score interval (E. B. Wilson, JASA 1927).
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mtkv.evaluate.answer_matching import Rules
from mtkv.evaluate.predictions import read_metric, read_predictions, read_rules
from mtkv.provenance.files import write_json

CONFIDENCE = 0.95


class ContradictionError(ValueError):
    """A second look at a predictions file does not find what lm-eval found."""


class ScoredRun(NamedTuple):
    """Whose answers to which questions a score file is of."""

    study: str
    arm: str
    seed: int
    dataset: str


def score(
    run: ScoredRun, predictions: Path, output: Path, expected_items: Path, limit: int | None = None
) -> dict[str, Any]:
    """Write the score of `predictions` on the first `limit` questions (None: all) of `expected_items`, the test file.

    Accuracy and its bounds are shares (0 to 1); null with status "failed" and the reason when the dataset could not be answered,
    when items are missing, unknown or there twice, or when a row's correctness does not follow from what the model said.
    `repeats` counts questions that were asked before; with any, `items.same_as` names the first that asks the same.
    Returns the score without its items. Raises ValueError for a table that is no predictions file.
    """
    questions = pd.read_parquet(expected_items).iloc[:limit].set_index("id")
    rows, reason = read_predictions(predictions)
    if reason is None:
        try:
            rows = _in_order(rows, questions)
            _check_rows(rows, questions, read_rules(predictions))
        except ContradictionError as contradiction:
            reason = f"a second look contradicts: {contradiction}"
    result: dict[str, Any] = run._asdict() | {"metric": read_metric(predictions) or _metric(questions)}
    if reason is not None:
        result |= {"status": "failed", "reason": reason, "n": 0, "correct": 0}
        result |= {"accuracy": None, "low": None, "high": None}
        items: dict[str, list[Any]] = {"id": [], "cluster": [], "correct": []}
    else:
        count, correct = len(rows), int(rows["correct"].sum())
        low, high = wilson_interval(correct, count)
        result |= {"status": "ok", "reason": None, "n": count, "correct": correct, "accuracy": correct / count}
        result |= {"low": low, "high": high}
        items = {
            "id": rows.index.tolist(),
            "cluster": rows["cluster"].tolist(),
            "correct": rows["correct"].astype(int).tolist(),
        }
        if repeats := _repeats(questions):
            items["same_as"] = questions["same_as"].tolist()
        result["repeats"] = repeats
    write_json(output, result | {"items": items})
    return result


def wilson_interval(correct: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's bounds of a share `correct`/`count`, in 0 to 1. `count` must be positive."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _repeats(questions: pd.DataFrame) -> int:
    """How many questions repeat an earlier one; the pocket tasks draw each question once."""
    return int(questions["same_as"].dropna().duplicated().sum()) if "same_as" in questions else 0


def _metric(questions: pd.DataFrame) -> str:
    return "exact_match" if (questions["gold"] < 0).all() else "acc"


def _in_order(rows: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """The rows indexed by item, in the order of the questions. Raises ContradictionError for other items."""
    twice = rows["item"][rows["item"].duplicated()].tolist()
    missing = questions.index[~questions.index.isin(rows["item"])].tolist()
    unknown = rows["item"][~rows["item"].isin(questions.index)].tolist()
    problems = {"there twice": twice, "missing": missing, "not of the dataset": unknown}
    said = "; ".join(f"{len(items)} {what} ({_some(items)})" for what, items in problems.items() if items)
    if said:
        raise ContradictionError(f"items are not the dataset's {len(questions)}: {said}")
    return rows.set_index("item").loc[questions.index]


def _check_rows(rows: pd.DataFrame, questions: pd.DataFrame, rules: Mapping[str, Rules]) -> None:
    """Raises ContradictionError for rows that fail one of `CHECKS`, by the `rules` of each part of the dataset."""
    pairs = list(zip(rows.itertuples(), questions.itertuples(), strict=True))
    for problem, agrees in CHECKS.items():
        wrong = [row for row, question in pairs if not agrees(row, question, rules.get(_part(question), Rules()))]
        if wrong:
            first = ", ".join(
                f"{name} {reprlib.repr(getattr(wrong[0], name))}" for name in ("filtered", "gold", "correct")
            )
            named = _some([str(row.Index) for row in wrong])
            raise ContradictionError(f"{problem} in {len(wrong)} of {len(pairs)} rows ({named}); the first: {first}")


def _part(question: Any) -> str:
    """The part of its dataset that a question is of; the pocket tasks have none."""
    return getattr(question, "part", "")


def _gold(question: Any) -> str:
    return question.answer if question.gold < 0 else question.choices[question.gold]


def _generated(row: Any) -> bool:
    """Whether the answer was generated; a question with choices may be asked for its answer in words (`evaluation.style`)."""
    return row.loglikelihoods is None


def _filtered_follows(row: Any, question: Any, rules: Rules) -> bool:
    """The likeliest choice, or what the task's filters take from a generated text."""
    if _generated(row):
        return isinstance(row.filtered, str) and rules.takes(row.filtered, row.output)
    return row.filtered in [question.choices[place] for place in _likeliest(row, question)]


def _correct_follows(row: Any, question: Any, rules: Rules) -> bool:
    """Of equally likely choices it counts which one was taken: lm-eval takes the first as asked, an order that is not written here."""
    if _generated(row):
        return rules.agrees(row.correct, row.filtered, row.gold)
    return row.correct == float(question.gold in _likeliest(row, question) and row.filtered == row.gold)


def _likeliest(row: Any, question: Any) -> list[int]:
    """The places of the likeliest choices, several where they are equal; none for another number of choices."""
    same = len(row.loglikelihoods) == len(question.choices)
    return np.flatnonzero(row.loglikelihoods == np.max(row.loglikelihoods)).tolist() if same else []


CHECKS: dict[str, Callable[[Any, Any, Rules], bool]] = {
    "cluster is not the question's": lambda row, question, _: row.cluster == question.cluster,
    "gold is not the question's": lambda row, question, _: row.gold == _gold(question),
    "filtered does not follow from the raw output": _filtered_follows,
    "correct does not follow from filtered and gold": _correct_follows,
}


def _some(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", …" if len(items) > 3 else "")
