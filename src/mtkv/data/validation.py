"""Checks of rows of text before any model is loaded: no two splits share a question, ids are unique, no answer is empty.

`split_facts` also gives the counts and digests that the data card holds.
"""

from typing import Any

import pandas as pd

from mtkv.data.splits import assert_no_leakage, hashes_digest, question_hash


def split_facts(frames: dict[str, pd.DataFrame], tests: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The facts of `build_data`, from the rows by split and the tests by dataset; hashes are computed anew. Raises LeakageError."""
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


def check_rows(rows: pd.DataFrame, where: str) -> None:
    """Raises ValueError for rows (columns id, prompt, target) that share an id or have an empty answer; `where` names the file.

    Two rows of one id would silently read each other's KV; a row without an answer trains a model to say nothing.
    """
    twice = rows.loc[rows["id"].duplicated(), "id"].unique()
    if len(twice):
        raise ValueError(f"{where}: {len(twice)} ids belong to more than one row, {twice[0]!r} among them")
    empty = rows.loc[rows["target"].isna() | (rows["target"].fillna("").str.strip() == ""), "id"]
    if len(empty):
        raise ValueError(f"{where}: {len(empty)} rows have an empty answer (target), {empty.iloc[0]!r} among them")
