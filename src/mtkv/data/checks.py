"""Are rows of text fit to be read and trained on? Checked before any model is loaded."""

import pandas as pd


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
