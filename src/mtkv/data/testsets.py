"""The test sets of real benchmarks: questions in a table, with the records that lm-eval reads, or the reason why there are none.

`test/<dataset>.parquet` holds the questions to ask. `examples/<dataset>.parquet` holds the records of the split that few-shot
prompts are taken from. A set that cannot be loaded is a table without rows whose metadata says why: the study goes on without it.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mtkv.data.answers import AnswerError
from mtkv.data.benchmarks import Benchmark
from mtkv.data.files import DataFileError, Record
from mtkv.data.origins import load_origin
from mtkv.data.sources import check_fields
from mtkv.data.splits import question_hash
from mtkv.provenance.files import atomic_path

if TYPE_CHECKING:
    from mtkv.config.data import DataConfig

UNAVAILABLE = b"unavailable"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("gold", pa.int64()),
        ("answer", pa.string()),
        ("cluster", pa.string()),
        ("question_hash", pa.string()),
        ("part", pa.string()),  # subtask or subject; "default" where there is just one
        ("match", pa.string()),  # how a generated answer is compared
        ("document", pa.string()),  # the record as lm-eval reads it, in JSON
    ]
)
EXAMPLES = pa.schema([("part", pa.string()), ("document", pa.string())])


def read_benchmark(benchmark: Benchmark, config: "DataConfig") -> tuple[pd.DataFrame, pd.DataFrame]:
    """All questions of a benchmark and the records for few-shot prompts. Raises DataFileError when it cannot be loaded."""
    folder = Path(config.folder) if config.folder else None
    revision = config.revisions.get(benchmark.name)
    tables = [
        _questions(benchmark, part, records)
        for part, records in load_origin(benchmark.origin, benchmark.split, folder, revision).items()
    ]
    # Parts take turns, so that the first so many questions are of all of them; the order within each part is the file's.
    turns = [row for rows in zip_longest(*tables) for row in rows if row is not None]
    examples = []
    if benchmark.examples:
        for part, records in load_origin(benchmark.origin, benchmark.examples, folder, revision).items():
            examples += [{"part": part, "document": _written(record)} for record in records]
    return pd.DataFrame(turns, columns=SCHEMA.names), pd.DataFrame(examples, columns=EXAMPLES.names)


def subset(frame: pd.DataFrame, size: int | None, seed: int) -> pd.DataFrame:
    """`size` questions, drawn by the hashes of seed and id and left in their order; all for None or a size beyond them.

    The draw looks at nothing but ids, so anybody can name the same questions.
    """
    if size is None or size >= len(frame):
        return frame
    rank = frame["id"].map(lambda item: hashlib.sha256(f"{seed}:{item}".encode()).hexdigest())
    return frame.loc[sorted(rank.sort_values().index[:size])]


def write_test(path: Path, frame: pd.DataFrame, reason: str | None = None) -> None:
    """Write questions, or with `reason` an empty table that says why there are none, atomically."""
    schema = SCHEMA if reason is None else SCHEMA.with_metadata({UNAVAILABLE: reason.encode()})
    _write(path, pa.Table.from_pylist(frame.to_dict("records"), schema=schema))


def write_examples(path: Path, frame: pd.DataFrame) -> None:
    """Write the records for few-shot prompts, atomically."""
    _write(path, pa.Table.from_pylist(frame.to_dict("records"), schema=EXAMPLES))


def unavailable(path: Path) -> str | None:
    """Why a test file has no questions, or None when it has."""
    reason = (pq.read_schema(path).metadata or {}).get(UNAVAILABLE)
    return None if reason is None else reason.decode()


def _questions(benchmark: Benchmark, part: str, records: Sequence[Record]) -> list[Record]:
    documents = [benchmark.document(record) for record in records]
    check_fields(f"{benchmark.name} ({part})", documents, benchmark.fields)
    single = len(benchmark.origin.configs) == 1
    rows = []
    for index, document in enumerate(documents):
        name = f"{benchmark.name}-{index:05d}" if single else f"{benchmark.name}-{part}-{index:04d}"
        try:
            item = benchmark.item(document, part)
        except (AnswerError, ValueError, TypeError) as error:
            raise DataFileError(f"{benchmark.name}: record {index} of {part} has no usable answer: {error}") from error
        rows.append(
            {"id": name, "question": item.question, "choices": list(item.choices), "gold": item.gold}
            | {"answer": item.answer, "cluster": item.cluster or name, "question_hash": question_hash(item.question)}
            | {"part": part, "match": benchmark.match, "document": _written(document)}
        )
    return rows


def _written(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, sort_keys=False, default=str)


def _write(path: Path, table: pa.Table) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
