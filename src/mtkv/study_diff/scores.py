"""The scores of two studies, arm by arm and dataset by dataset, paired on the items that both asked.

Items of equal number may be other questions where the data were made anew (`with_questions`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.intervals import estimate
from mtkv.stats.items import MACRO, Answers, Codes, codes_of
from mtkv.stats.multiplicity import holm
from mtkv.stats.paired_tests import difference

ASKED = ["question", "choices", "gold", "answer"]


def with_questions(
    a: pd.DataFrame, b: pd.DataFrame, folders: tuple[Path, Path]
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """The items of `a` and of `b`, named so that equal names are equal questions; and dataset → number of names that were not.

    An item whose question, choices or gold answer differ gets a new name on side b. Datasets whose data/test file one of the
    studies lacks are compared by name alone.
    """
    moved: dict[str, set[str]] = {}
    for dataset in dict.fromkeys([*a["dataset"], *b["dataset"]]):
        tests = [folder / f"data/test/{dataset}.parquet" for folder in folders]
        if all(path.is_file() for path in tests):
            ours, theirs = map(_questions, tests)
            if changed := {item for item in ours.keys() & theirs.keys() if ours[item] != theirs[item]}:
                moved[dataset] = changed
    other = b.assign(item=_renamed(b, moved))
    shared = set(zip(a["dataset"], a["item"], strict=True)) & set(zip(b["dataset"], b["item"], strict=True))
    return a, other, {name: sum((name, item) in shared for item in items) for name, items in moved.items()}


def _questions(path: Path) -> dict[str, str]:
    """item → question, choices and gold answer, as one text."""
    table = pd.read_parquet(path)
    columns = [table[name] for name in ASKED if name in table]
    rows = zip(*(column.map(_plain) for column in columns), strict=True)
    return dict(zip(table["id"], map(repr, rows), strict=True))


def _plain(value: Any) -> str:
    """A value as text: parquet returns a list of choices as an array, which is written like the list."""
    return repr([str(one) for one in value]) if isinstance(value, np.ndarray) else str(value)


def _renamed(frame: pd.DataFrame, moved: dict[str, set[str]]) -> list[str]:
    pairs = zip(frame["dataset"], frame["item"], strict=True)
    return [f"{item} (other question)" if item in moved.get(dataset, ()) else item for dataset, item in pairs]


NUMBERS = ["mean_a", "mean_b", "delta", "low", "high", "p", "p_holm", "mdd"]
COLUMNS = ["arm", "dataset", *NUMBERS, "n_items", "only_a", "only_b", "seeds_a", "seeds_b", "status", "reason"]


def score_rows(
    a: pd.DataFrame, b: pd.DataFrame, confidence: float, resamples: int, seed: int, min_clusters: int
) -> pd.DataFrame:
    """b − a for every arm and dataset, and for "macro" where an arm has all datasets of both studies.

    `a` and `b` are items.parquet of the two studies. Holm's families are the macro rows, and the datasets of one arm.
    """
    arms, datasets = (list(dict.fromkeys([*a[name], *b[name]])) for name in ("arm", "dataset"))
    rows: list[dict[str, Any]] = []
    for arm in arms:
        sides = [frame[frame["arm"] == arm] for frame in (a, b)]
        answers, lost = paired_answers(sides[0], sides[1], datasets, min_clusters)
        draws = Resamples(answers, resamples, seed)
        rows += [_row(answers, draws, arm, column, confidence, lost) for column in answers.columns]
    table = pd.DataFrame(rows, columns=COLUMNS)
    family = table["arm"].where(table["dataset"] != MACRO, "")
    table["p_holm"] = table.groupby(family)["p"].transform(lambda p: holm(p.to_numpy(dtype=float)))
    return table.astype(dict.fromkeys(NUMBERS, float))


def paired_answers(
    a: pd.DataFrame, b: pd.DataFrame, datasets: list[str], min_clusters: int
) -> tuple[Answers, dict[str, tuple[int, int]]]:
    """`Answers` of two arms "a" and "b" on the items both have, and how many items only one of them has, per dataset."""
    seeds = {side: sorted(int(s) for s in frame["seed"].unique()) for side, frame in (("a", a), ("b", b))}
    correct, reasons, lost = {}, {}, {}
    codes: dict[str, dict[str, Codes]] = {"cluster": {}, "question": {}}
    for dataset in datasets:
        wide = {side: _wide(frame[frame["dataset"] == dataset]) for side, frame in (("a", a), ("b", b))}
        common = wide["a"].index.intersection(wide["b"].index).sort_values()
        lost[dataset] = (len(wide["a"]) - len(common), len(wide["b"]) - len(common))
        for side, table in wide.items():
            empty = [f"no scores in {one}" for one, its in wide.items() if its.empty]
            reason = " and ".join(empty) or ("" if len(common) else "no item in common")
            for run in seeds[side] or [0]:
                key = side, run, dataset
                if reason or run not in table or table.loc[common, run].isna().any():
                    reasons[key] = reason or f"no scores in {side}"
                else:
                    correct[key] = table.loc[common, run].to_numpy(dtype=float)
        named = a[a["dataset"] == dataset].drop_duplicates("item").set_index("item").reindex(common)
        for what in codes.keys() & named.columns:  # older studies do not have the column question
            codes[what][dataset] = codes_of(named[what].astype(str))
    seeds = {side: own or [0] for side, own in seeds.items()}
    frame = pd.DataFrame()
    return Answers(frame, seeds, datasets, correct, reasons, codes["cluster"], min_clusters, codes["question"]), lost


def missing_because(answers: Answers, column: str) -> str:
    """Why a column has no number, each reason once: "gsm8k: no scores in b; bbh: no scores in a (seed 43)"."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for (side, seed, dataset), reason in answers.reasons.items():
        if dataset in answers.strata(column):
            partial = any((side, other, dataset) in answers.correct for other in answers.seeds[side])
            seeds.setdefault((dataset, reason), set()).update([seed] if partial else [])
    return "; ".join(
        f"{dataset}: {reason}" + (f" (seed {', '.join(map(str, sorted(own)))})" if own else "")
        for (dataset, reason), own in seeds.items()
    )


def _wide(frame: pd.DataFrame) -> pd.DataFrame:
    """[items, seeds] of correctness. Raises ValueError for an item that is there twice."""
    return frame.pivot(index="item", columns="seed", values="correct")


def _row(
    answers: Answers, draws: Resamples, arm: str, column: str, confidence: float, lost: dict[str, tuple[int, int]]
) -> dict[str, Any]:
    """One row; `n_items` counts the items of both, `only_a` and `only_b` those left out."""
    found = difference(answers, draws, "b", "a", column, confidence)
    only = np.sum([lost[dataset] for dataset in answers.strata(column)], axis=0)
    row = {"arm": arm, "dataset": column, "only_a": int(only[0]), "only_b": int(only[1])}
    row |= {f"seeds_{side}": ", ".join(map(str, answers.seeds[side])) for side in "ab"}
    if isinstance(found, str):
        why = {"n_items": 0, "status": "missing", "reason": missing_because(answers, column)}
        return row | dict.fromkeys(NUMBERS, float("nan")) | why
    of = found.estimate
    row |= {f"mean_{side}": estimate(answers, draws, side, column, confidence).value for side in "ab"}
    row |= {"delta": of.value, "low": of.low, "high": of.high, "p": found.p, "mdd": found.mdd, "n_items": of.n_items}
    partly = f"on the {of.n_items} items of both; {only[0]} only in a, {only[1]} only in b" if only.any() else None
    return row | {"status": "ok" if partly is None else "partial", "reason": partly}
