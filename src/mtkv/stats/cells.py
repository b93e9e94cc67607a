"""The table of accuracies: one cell per arm and dataset, and one for the macro average, with its interval.

In: `Answers`. Out: the rows of cells.parquet. One seed of right-or-wrong answers has Wilson's interval (with clusters: of the
effective number of items); anything else that of `intervals`. `tied`, `rank`, `rank_low` and `rank_high` are those of `ranks`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.intervals import Estimate, estimate, spread, wilson
from mtkv.stats.items import MACRO, Answers
from mtkv.stats.ranks import Rank, tied_set
from mtkv.stats.translatable import packed

__all__ = ["COLUMNS", "cell", "cells_table", "effective_items", "is_binary", "tied_set"]
COLUMNS = ["arm", "dataset", "mean", "low", "high", "n_items", "n_seeds", "sd_seeds", "status", "reason", "tied"]
COLUMNS += ["sd_items", "se", "interval", "n_clusters", "clustered", "design_effect"]
COLUMNS += ["rank", "rank_low", "rank_high", "reason_parts"]
NUMBERS = ["mean", "low", "high", "sd_seeds", "sd_items", "se", "design_effect"]


def cell(answers: Answers, resamples: Resamples, arm: str, column: str, confidence: float) -> Estimate | str:
    """The accuracy of an arm in a column (a dataset or "macro"), or why there is none."""
    if gap := answers.missing(arm, column):
        return gap
    found = estimate(answers, resamples, arm, column, confidence)
    low, high, method = max(found.low, 0.0), min(found.high, 1.0), found.method
    if column != MACRO and ((is_binary(answers, arm, column) and found.n_seeds == 1) or found.unvaried):
        items = effective_items(answers, found, column, confidence)
        low, high = wilson(found.value * items, items, confidence)
        method = "wilson" if answers.groups(column) is None else "wilson, clusters"
    return replace(found, low=low, high=high, method=method)


def effective_items(answers: Answers, found: Estimate, dataset: str, confidence: float) -> float:
    """How many independent items would be as informative as the dataset's, which may come in clusters; at most their number.

    p(1 − p)/se², made smaller by (z/t)² for the few clusters that se is estimated from (Korn & Graubard 1998).
    """
    if answers.groups(dataset) is None:
        return float(found.n_items)
    if found.unvaried:  # whether the items of a cluster go together cannot be seen
        return float(answers.n_groups(dataset))
    tail = (1 + confidence) / 2
    few = (stats.norm.ppf(tail) / stats.t.ppf(tail, answers.n_groups(dataset) - 1)) ** 2
    return min(float(found.n_items), found.value * (1 - found.value) / found.se**2 * few)


def is_binary(answers: Answers, arm: str, dataset: str) -> bool:
    """Whether every item is either right (1) or wrong (0), never in between."""
    return bool(np.isin(answers.matrix(arm, dataset), (0.0, 1.0)).all())


def design_effect(answers: Answers, arm: str, column: str) -> float:
    """Variance of the mean over items when whole clusters vary, over that when each item does; NaN without clusters.

    Computed from the clusters as they are, even where they are too few for the interval to respect them.
    """
    if not any(answers.n_clusters(dataset) > 1 for dataset in answers.strata(column)):
        return float("nan")
    naive = whole = 0.0
    for dataset in answers.strata(column):
        shares = answers.matrix(arm, dataset).mean(axis=0)
        groups = answers.clusters[dataset] if answers.n_clusters(dataset) > 1 else None
        naive += spread(shares) / shares.size
        whole += spread(shares, groups) / shares.size
    return whole / naive if naive else float("nan")


def cells_table(
    answers: Answers,
    resamples: Resamples,
    confidence: float,
    placed: Mapping[str, Mapping[str, Rank]],
) -> pd.DataFrame:
    """cells.parquet, one row per arm and column. `placed`: column → `ranks.places`, whose arms alone can be best, tied or ranked."""
    rows = []
    for column in answers.columns:
        cells = {arm: cell(answers, resamples, arm, column, confidence) for arm in answers.seeds}
        rows += [_row(answers, arm, column, found, placed[column].get(arm, Rank())) for arm, found in cells.items()]
    order = {arm: i for i, arm in enumerate(answers.seeds)}
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(
        "arm", key=lambda arms: arms.map(order), kind="stable", ignore_index=True
    )


def _row(answers: Answers, arm: str, column: str, found: Estimate | str, place: Rank) -> dict[str, Any]:
    strata = answers.strata(column)
    row = {"arm": arm, "dataset": column, "tied": place.tied, "n_clusters": sum(map(answers.n_clusters, strata))}
    row |= {"rank": place.rank, "rank_low": place.low, "rank_high": place.high}
    row["clustered"] = any(answers.groups(dataset) is not None for dataset in strata)
    if isinstance(found, str):
        row |= dict.fromkeys(NUMBERS, float("nan")) | {"n_items": 0, "n_seeds": 0, "interval": None}
        return row | {"status": "missing", "reason": str(found), "reason_parts": packed(found)}
    row |= {name: getattr(found, name) for name in ("low", "high", "n_items", "n_seeds", "sd_seeds", "sd_items")}
    row["se"] = found.safe.se
    row |= {"mean": found.value, "interval": found.method, "design_effect": design_effect(answers, arm, column)}
    return row | {"status": "ok", "reason": None, "reason_parts": None}
