"""The stage `compare`: from item-level scores to cells, paired differences, verdicts on the claims and the study's grade.

In: the scores files of every run and the cards of the training jobs. Out: items, cells, pairs and claims as parquet files,
and the facts of the stage's card. Needs no model, no torch and no network.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkv.provenance.files import read_json, write_parquet
from mtkv.stats.cells import cells_table
from mtkv.stats.claims import claims_table, grade
from mtkv.stats.fairness import check_fairness
from mtkv.stats.items import read_scores
from mtkv.stats.pairs import families, pairs_table
from mtkv.stats.resampling import Resamples

if TYPE_CHECKING:
    from mtkv.config.study import Study


def compare(study: "Study", scores: Sequence[Path], train_cards: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Write folder/{items,cells,pairs,claims}.parquet; return grade, verdicts, what is missing and the arms' compute.

    The order of `scores` and of the items in them does not matter. Raises ScoresError and UnfairComparison.
    """
    settings = study.comparison
    compute = check_fairness([read_json(path) for path in train_cards], settings.tolerance)
    seeds = {arm: study.seeds_of(arm) for arm in study.arms}
    answers = read_scores(scores, study.study, seeds, study.datasets)
    resamples = Resamples(answers, settings.resamples, settings.seed)
    tables = {
        "items": answers.items,
        "cells": cells_table(answers, resamples, settings.confidence, contenders(study)),
        "pairs": pairs_table(answers, resamples, families(study), settings.confidence),
        "claims": claims_table(answers, resamples, study.claims, settings.confidence),
    }
    for name, table in tables.items():
        write_parquet(folder / f"{name}.parquet", table)
    return {
        "grade": grade(tables["claims"]),
        "claims": dict(Counter(tables["claims"]["verdict"])),
        "missing": {
            f"{arm}/seed{seed}/{dataset}": why for (arm, seed, dataset), why in sorted(answers.reasons.items())
        },
        "items": len(answers.items),
        "compute": compute,
    }


def contenders(study: "Study") -> list[str]:
    """Arms that can be the best of a column: the students. A teacher's own scores are a reference, not a rival."""
    students = [name for name, arm in study.arms.items() if arm.model == "student"]
    return students or list(study.arms)
