"""The table of accuracies: one cell per arm and dataset, and one for the macro average, with its interval.

In: `Answers`. Out: the rows of cells.parquet. One seed of right-or-wrong answers has Wilson's interval; several seeds, or
the macro average, the two-level interval of `intervals`. The *tied set* of a column are the arms whose difference from the
best one has an interval that covers 0: a table has winners only where it can tell them apart.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mtkv.stats.intervals import Estimate, estimate, wilson
from mtkv.stats.items import MACRO, Answers
from mtkv.stats.resampling import Resamples

COLUMNS = ["arm", "dataset", "mean", "low", "high", "n_items", "n_seeds", "sd_seeds", "status", "reason", "tied"]


def cell(answers: Answers, resamples: Resamples, arm: str, column: str, confidence: float) -> Estimate | str:
    """The accuracy of an arm in a column (a dataset or "macro"), or why there is none."""
    if gap := answers.missing(arm, column):
        return gap
    found = estimate(answers, resamples, arm, column, confidence)
    if column == MACRO:
        return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
    matrix = answers.matrix(arm, column)
    # Answers that are all right, or all wrong, show no variation to resample; that is no certainty.
    if (is_binary(answers, arm, column) and found.n_seeds == 1) or matrix.min() == matrix.max():
        low, high = wilson(found.value * found.n_items, found.n_items, confidence)
    else:
        low, high = max(found.low, 0.0), min(found.high, 1.0)
    return replace(found, low=low, high=high)


def is_binary(answers: Answers, arm: str, dataset: str) -> bool:
    """Whether every item is plainly right or wrong."""
    return bool(np.isin(answers.matrix(arm, dataset), (0.0, 1.0)).all())


def cells_table(answers: Answers, resamples: Resamples, confidence: float, contenders: Sequence[str]) -> pd.DataFrame:
    """cells.parquet. Only `contenders` are candidates for the best arm and its tied set."""
    rows = []
    for column in answers.columns:
        cells = {arm: cell(answers, resamples, arm, column, confidence) for arm in answers.seeds}
        tied = tied_set(answers, resamples, column, confidence, contenders)
        rows += [_row(answers, arm, column, found, arm in tied) for arm, found in cells.items()]
    order = {arm: i for i, arm in enumerate(answers.seeds)}
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(
        "arm", key=lambda arms: arms.map(order), kind="stable", ignore_index=True
    )


def tied_set(
    answers: Answers, resamples: Resamples, column: str, confidence: float, contenders: Sequence[str]
) -> set[str]:
    """The best contender of a column and those whose difference from it has an interval that covers 0."""
    means = {
        arm: np.mean([answers.matrix(arm, dataset).mean() for dataset in answers.strata(column)])
        for arm in contenders
        if answers.missing(arm, column) is None
    }
    if not means:
        return set()
    best = max(means, key=means.__getitem__)
    rivals = {arm: estimate(answers, resamples, arm, column, confidence, best) for arm in means if arm != best}
    return {best} | {arm for arm, found in rivals.items() if found.low <= 0 <= found.high}


def _row(answers: Answers, arm: str, column: str, found: Estimate | str, tied: bool) -> dict[str, object]:
    if isinstance(found, str):
        numbers = dict.fromkeys(("mean", "low", "high", "sd_seeds"), float("nan"))
        return {
            "arm": arm,
            "dataset": column,
            **numbers,
            "n_items": 0,
            "n_seeds": 0,
            "status": "missing",
            "reason": found,
            "tied": False,
        }
    return {
        "arm": arm,
        "dataset": column,
        "mean": found.value,
        "low": found.low,
        "high": found.high,
        "n_items": found.n_items,
        "n_seeds": found.n_seeds,
        "sd_seeds": found.sd_seeds,
        "status": "ok",
        "reason": None,
        "tied": tied,
    }
