"""The test sets of real benchmarks as tables: questions, with the records that lm-eval reads.

`test/<dataset>.parquet` holds the questions to ask. `examples/<dataset>.parquet` holds the records of the split that few-shot
prompts are taken from, without those that are test questions. A set that cannot be loaded, or with a record that cannot be asked, is
a table without rows whose metadata says why: the study goes on without it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from mtkv.config.data import DataConfig
from mtkv.data.answers import AnswerError, as_text
from mtkv.data.benchmarks import Benchmark, asked
from mtkv.data.items import Item
from mtkv.data.loading import DataFileError, Record, Records, load_origin
from mtkv.data.rows import test_row
from mtkv.data.sources import Unusable
from mtkv.data.splits import TestTexts, question_hash
from mtkv.provenance.files import parquet_note, write_parquet

UNAVAILABLE, DROPPED, OWN = b"unavailable", b"dropped", b"own"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("gold", pa.int64()),
        ("answer", pa.string()),
        ("cluster", pa.string()),
        ("question_hash", pa.string()),
        (
            "same_as",
            pa.string(),
        ),  # id of the first question that asks the same with the same options; its own where new
        ("part", pa.string()),  # subtask or subject; "default" where there is just one
        ("document", pa.string()),  # the record as lm-eval reads it, in JSON
    ]
)
EXAMPLES = pa.schema([("part", pa.string()), ("document", pa.string())])


@dataclass
class TestSet:
    """Questions (columns of `SCHEMA`) and records for few-shot prompts (`examples`, columns of `EXAMPLES`).

    Of the records for prompts, `counts`: how many were kept or left out, by reason; `dropped`: how many were left out of each part;
    `unusable`: those that cannot be read.
    """

    __test__ = False

    questions: pd.DataFrame
    examples: pd.DataFrame
    counts: Counter[str]
    dropped: dict[str, int]
    unusable: Unusable


def read_benchmark(benchmark: Benchmark, config: DataConfig) -> TestSet:
    """All of a benchmark. Raises DataFileError when it cannot be loaded or a record cannot be asked."""
    folder = Path(config.folder) if config.folder else None
    revision = config.revisions.get(benchmark.name)
    read, unusable = _read(benchmark, load_origin(benchmark.origin, benchmark.split, folder, revision))
    if unusable:
        raise DataFileError(f"{benchmark.name}: {len(unusable)} records cannot be asked: {unusable}")
    tests = TestTexts(each.asked for found in read.values() for each in found)
    # Parts alternate, so that the first n questions come from all of them; the order within each part is the file's.
    tables = zip_longest(*(_questions(benchmark, part, found) for part, found in read.items()))
    turns = [row for rows in tables for row in rows if row is not None]
    first: dict[str, str] = {}
    for row in turns:
        row["same_as"] = first.setdefault(row["same_as"], row["id"])
        row["cluster"] = row["cluster"] or row["same_as"]
    questions = pd.DataFrame(turns, columns=SCHEMA.names)
    splits = load_origin(benchmark.origin, benchmark.examples, folder, revision) if benchmark.examples else {}
    return _with_examples(benchmark, questions, tests, splits)


def _with_examples(
    benchmark: Benchmark, questions: pd.DataFrame, tests: TestTexts, splits: Mapping[str, Records]
) -> TestSet:
    """The test set with its few-shot records (`splits`: by part), without those that are test questions.

    Records that only share words with a test question are kept and counted: many questions on Chinese law begin with the same 13
    characters, and lm-eval's prompts should stay what they are.
    """
    read, unusable = _read(benchmark, splits)
    examples, counts, dropped = [], Counter[str](), {}
    for part, found in read.items():
        shared = [tests.shares(each.asked, each.asked) for each in found]
        kept = [each.written for each, what in zip(found, shared, strict=True) if what != "text"]
        examples += [{"part": part, "document": written} for written in kept]
        dropped[part] = len(splits[part]) - len(kept)
        counts += Counter(contaminated_text=shared.count("text"), shares_ngram=shared.count("ngram"), usable=len(kept))
    if splits:
        counts += Counter(records=sum(map(len, splits.values())), unusable=len(unusable))
    return TestSet(questions, pd.DataFrame(examples, columns=EXAMPLES.names), counts, dropped, unusable)


def subset(frame: pd.DataFrame, size: int | None, seed: int) -> pd.DataFrame:
    """The `size` questions with the smallest SHA-256 of "seed:id", in their order; all of them for None or fewer than `size`.

    The draw depends on seed and ids alone, so anybody can name the same questions.
    """
    if size is None or size >= len(frame):
        return frame
    rank = frame["id"].map(lambda item: hashlib.sha256(f"{seed}:{item}".encode()).hexdigest())
    return frame.loc[sorted(rank.sort_values().index[:size])]


def write_test(path: Path, frame: pd.DataFrame, reason: str | None = None, own: str | None = None) -> None:
    """Write questions, or with `reason` an empty table that says why there are none, atomically. `own`: see `own_path`."""
    said = {key: value.encode() for key, value in ((UNAVAILABLE, reason), (OWN, own)) if value is not None}
    schema = SCHEMA.with_metadata(said) if said else SCHEMA
    write_parquet(path, pa.Table.from_pylist(frame.to_dict("records"), schema=schema))


def write_own(path: Path, frame: pd.DataFrame, own: str) -> None:
    """Write the test items of a `Task` of the user's own, whose import path is `own`."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    write_parquet(path, table.replace_schema_metadata((table.schema.metadata or {}) | {OWN: own.encode()}))


def own_path(path: Path) -> str | None:
    """The import path of the user's own `Task` or `Benchmark` that a test file is of; None for one of this package."""
    return parquet_note(path, OWN)


def write_examples(path: Path, frame: pd.DataFrame, dropped: Mapping[str, int] | None = None) -> None:
    """Write the records for few-shot prompts, atomically; `dropped`: how many of each part were left out."""
    schema = EXAMPLES.with_metadata({DROPPED: json.dumps(dropped or {}).encode()})
    write_parquet(path, pa.Table.from_pylist(frame.to_dict("records"), schema=schema))


def dropped_examples(path: Path) -> dict[str, int]:
    """How many records of each part are not in a file of examples, because they are test questions or cannot be asked."""
    found: dict[str, int] = json.loads(parquet_note(path, DROPPED) or "{}")
    return found


def unavailable(path: Path) -> str | None:
    """The reason why a test file has no questions, or None when it has some."""
    return parquet_note(path, UNAVAILABLE)


class ReadRecord(NamedTuple):
    """A record that can be asked: its question, lm-eval's record, that in JSON, and the text by which the leakage check knows it."""

    item: Item
    document: Record
    written: str
    asked: str


def _read(benchmark: Benchmark, splits: Mapping[str, Records]) -> tuple[dict[str, list[ReadRecord]], Unusable]:
    """For each part the records that can be asked, and the unusable ones."""
    read: dict[str, list[ReadRecord]] = {part: [] for part in splits}
    unusable = Unusable(benchmark.fields)
    for part, records in splits.items():
        for index, record in enumerate(records):
            with unusable.unless_read(records, index):
                document = benchmark.document(record)
                if lacking := [field for field in benchmark.fields if field not in document]:
                    raise AnswerError(f"there is no {', '.join(lacking)}")
                item, written = benchmark.item(document, part), _written(benchmark, document)
                read[part].append(ReadRecord(item, document, written, asked(item, document)))
    return read, unusable


def _questions(benchmark: Benchmark, part: str, read: list[ReadRecord]) -> list[Record]:
    single = len(benchmark.origin.configs) == 1
    rows = []
    for index, (item, document, written, _) in enumerate(read):
        name = f"{benchmark.name}-{index:05d}" if single else f"{benchmark.name}-{part}-{index:04d}"
        # The options of some benchmarks are fields of the record, their choices the letters.
        options = sorted(str(document.get(choice, choice)) for choice in item.choices)
        rows.append(
            test_row(name, item, question_hash(item.question))
            | {"same_as": question_hash("\n".join([item.question, *options]))}
            | {"part": part, "document": written}
        )
    return rows


def _written(benchmark: Benchmark, document: Record) -> str:
    """The fields of a record that lm-eval reads, as JSON; others may not be JSON-able. Raises ValueError for NaN and half characters."""
    written = json.dumps({field: document[field] for field in benchmark.fields}, ensure_ascii=False, allow_nan=False)
    return as_text(written)
