"""The stage `compare`: from item-level scores to cells, paired differences, verdicts on the claims and the study's grade.

In: the scores files of every run and the cards of the training jobs. Out: items, cells, pairs, matrix and claims as parquet
files, the study's config beside them (for `diff`), and the facts of the stage's card. Needs no model, no torch, no network.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mtkv.config.study import Study
from mtkv.provenance.files import read_json, write_json, write_parquet
from mtkv.stats.bootstrap import Resamples
from mtkv.stats.cells import cells_table
from mtkv.stats.claims.verdicts import claims_table, grade
from mtkv.stats.compute_parity import check_fairness
from mtkv.stats.items import read_scores
from mtkv.stats.pairs import families, pairs_table
from mtkv.stats.ranks import duels, matrix_table, places
from mtkv.stats.translatable import tell

TABLES = ("items", "cells", "pairs", "matrix", "claims")


def compare(study: Study, scores: Sequence[Path], train_cards: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Write the `TABLES` and study.json to `folder`; return grade, verdicts, what is missing and the arms' compute.

    The order of `scores` and of the items in them does not matter. Raises ScoresError and UnfairComparison.
    """
    settings = study.comparison
    confidence, margin = settings.confidence, settings.equivalence_margin / 100
    cards, apart = [read_json(path) for path in train_cards], only_teachers(study)
    compute = check_fairness([card for card in cards if card["wildcards"]["arm"] not in apart], settings.tolerance)
    seeds = {arm: study.seeds_of(arm) for arm in study.arms}
    answers = read_scores(scores, study.study, seeds, study.datasets, settings.min_clusters)
    resamples = Resamples(answers, settings.resamples, settings.seed)
    placed = {}

    def matrix() -> Iterator[pd.DataFrame]:
        for column in answers.columns:
            fought = duels(answers, resamples, column, confidence, list(study.arms))
            placed[column] = places(answers, column, fought, confidence, contenders(study))
            yield matrix_table(column, fought, confidence, list(study.arms), answers.columns)

    write_parquet(folder / "matrix.parquet", matrix())
    tables = {
        "items": answers.items,
        "cells": cells_table(answers, resamples, confidence, placed),
        "pairs": pairs_table(answers, resamples, families(study), confidence, margin),
        "claims": claims_table(answers, resamples, study.claims, confidence, margin, without_twin(study)),
    }
    write_json(folder / "study.json", study.model_dump(mode="json", exclude={"resources"}))
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


def contenders(study: Study) -> list[str]:
    """Arms that can be the best of a column: the students. A teacher's own scores are a reference, not a rival."""
    teachers = only_teachers(study)
    students = [name for name, arm in study.arms.items() if arm.model == "student" and name not in teachers]
    return students or list(study.arms)


def only_teachers(study: Study) -> set[str]:
    """Arms that are trained to teach other arms and that nothing is claimed of but what may be said of any teacher: that an arm `reaches`
    it. They may have more compute than the arms that are compared."""
    compared: set[str | None] = {study.comparison.baseline}
    for claim in study.claims.values():
        compared |= {claim.arm, *(getattr(claim, field, None) for field in ("baseline", "twin", "reference"))}
        compared |= {*getattr(claim, "baselines", [])} if claim.kind != "reaches" else set()
    return set(study.arms_that_teach()) - compared


def without_twin(study: Study) -> dict[str, str]:
    """Claims that KV helps (an arm with teachers' KV beats one without) and name no control arm as their twin.

    A KV loss can help merely by regularising, so without a control twin to beat such a claim cannot be supported.
    """
    found: dict[str, str] = {}
    for name, claim in study.claims.items():
        if claim.kind != "difference" or study.arms[claim.arm].kv is None:
            continue
        if (other := study.arms[claim.baseline]).training is None or other.kv is not None:
            continue
        twin = study.arms[claim.twin].kv if claim.twin else None
        if claim.twin is None:
            found[name] = tell("no control twin is named that it would have to beat as well")
        elif twin is None or twin.control == "none":
            found[name] = tell("its twin {twin} is no control arm", twin=claim.twin)
    return found
