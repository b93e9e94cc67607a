"""Which items of two studies are the same question: items of equal number may be other questions where the data were made anew."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

COLUMNS = ["question", "choices", "gold", "answer"]


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
    columns = [table[name] for name in COLUMNS if name in table]
    rows = zip(*(column.map(_plain) for column in columns), strict=True)
    return dict(zip(table["id"], map(repr, rows), strict=True))


def _plain(value: Any) -> str:
    """A value as text: parquet returns a list of choices as an array, which is written like the list."""
    return repr([str(one) for one in value]) if isinstance(value, np.ndarray) else str(value)


def _renamed(frame: pd.DataFrame, moved: dict[str, set[str]]) -> list[str]:
    pairs = zip(frame["dataset"], frame["item"], strict=True)
    return [f"{item} (other question)" if item in moved.get(dataset, ()) else item for dataset, item in pairs]
