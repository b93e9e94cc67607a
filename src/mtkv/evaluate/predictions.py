"""The predictions file: one row per question of a dataset, or the reason why the dataset could not be answered.

`predict` writes it; `score` reads it without torch or lm-eval. A failed dataset is a file without rows whose parquet
metadata holds the reason, so that a study goes on and says what is missing.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mtkv.evaluate.answer_matching import Rules
from mtkv.provenance.files import parquet_note, write_parquet

SCHEMA = pa.schema(
    [
        ("item", pa.string()),
        ("cluster", pa.string()),
        ("prompt_hash", pa.string()),  # sha256 of the text the model read
        ("output", pa.string()),  # generated text, null for multiple choice
        ("loglikelihoods", pa.list_(pa.float64())),  # of each choice in nats, null for generation
        ("filtered", pa.string()),  # the answer taken from the output, or the likeliest choice
        ("gold", pa.string()),
        ("correct", pa.float64()),
    ]
)
FAILED, METRIC, RULES = b"failed", b"metric", b"rules"


def write_predictions(
    path: str | Path, rows: list[dict[str, Any]], metric: str | None = None, rules: Mapping[str, Rules] | None = None
) -> None:
    """Write rows with the columns of `SCHEMA`, atomically.

    `metric` is lm-eval's name of what `correct` is; `rules`, of each part of a dataset ("" where it has none), how generated answers were
    taken and compared.
    """
    said = {RULES: json.dumps({part: asdict(rule) for part, rule in (rules or {}).items()}).encode()}
    schema = SCHEMA.with_metadata(said | ({METRIC: metric.encode()} if metric else {}))
    write_parquet(path, pa.Table.from_pylist(rows, schema=schema))


def read_metric(path: str | Path) -> str | None:
    """lm-eval's name of what `correct` is, where the file says."""
    return parquet_note(path, METRIC)


def read_rules(path: str | Path) -> dict[str, Rules]:
    """How generated answers were taken and compared, for each part of the dataset."""
    found = json.loads(parquet_note(path, RULES) or "{}")
    return {part: Rules(**rules) for part, rules in found.items()}


def write_failure(path: str | Path, reason: str) -> None:
    """Write a file without rows that says why the dataset has no predictions, atomically."""
    write_parquet(path, SCHEMA.with_metadata({FAILED: reason.encode()}).empty_table())


def read_predictions(path: str | Path) -> tuple[pd.DataFrame, str | None]:
    """The rows, and the reason of failure (None when the dataset was answered).

    Raises ValueError for a file with other columns than `SCHEMA`.
    """
    table = pq.read_table(path)
    if not table.schema.equals(SCHEMA, check_metadata=False):
        raise ValueError(f"{path}: columns {table.schema.names} with these types are not a predictions file")
    return table.to_pandas(), parquet_note(path, FAILED)
