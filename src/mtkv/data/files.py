"""Records of a data file, as dicts: JSON (a list, or an object that holds one), JSON lines, CSV and parquet.

CSV values stay text: an option that reads "None", "NA" or "0.50" is an answer, not a missing value or a number.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Record = dict[str, Any]
HOLDERS = ("examples", "data", "rows")  # keys under which a JSON object keeps its records


class DataFileError(ValueError):
    """A data file that cannot be read, or a data set that is not where it should be."""


def read_records(path: Path) -> list[Record]:
    """All records of a file. Raises DataFileError naming the file for an unknown format, broken content or no records."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataFileError(f"{path}: unknown format; allowed: {', '.join(READERS)}")
    try:
        records = reader(path)
    except (ValueError, OSError, csv.Error) as error:  # JSON, Unicode and Arrow errors are ValueErrors
        raise DataFileError(f"{path}: cannot be read: {error}") from error
    if not records:
        raise DataFileError(f"{path}: holds no records")
    if not all(isinstance(record, dict) for record in records):
        raise DataFileError(f"{path}: holds records that are no mappings of field names to values")
    return records


def _json(path: Path) -> list[Record]:
    """One JSON value, or several one after the other (Math23K's file: objects over several lines each)."""
    text, decoder, values, place = path.read_text(encoding="utf-8-sig"), json.JSONDecoder(), [], 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        value, place = decoder.raw_decode(text, place)
        values.append(value)
    if len(values) != 1:
        return values
    whole = values[0]
    if isinstance(whole, dict):
        held = [whole[key] for key in HOLDERS if isinstance(whole.get(key), list)]
        return held[0] if held else [whole]
    return whole if isinstance(whole, list) else values


def _json_lines(path: Path) -> list[Record]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def _csv(path: Path) -> list[Record]:
    """Rows of a CSV file with a header. A first column without a name, pandas' index, is left out."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has not as many values as the header has names")
    return [{name: value for name, value in row.items() if name} for row in rows]


def _parquet(path: Path) -> list[Record]:
    return pq.read_table(path).to_pylist()


READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}
