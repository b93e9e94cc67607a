"""Rows as a file that other programs read: one JSON object a line, with the text and its parts."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from mtkv.provenance.files import atomic_path


def write_jsonl(rows: Path, output: Path) -> int:
    """Write every row of a parquet file as one line of JSON, columns and order kept; returns their number.

    Text is written as it is (UTF-8, not escaped). Raises FileNotFoundError when there is no such rows file.
    """
    count = 0
    with atomic_path(output) as temporary, Path(temporary).open("w", encoding="utf-8", newline="\n") as file:
        for batch in pq.ParquetFile(rows).iter_batches():
            for record in batch.to_pylist():
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
    return count
