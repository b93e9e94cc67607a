"""Write items as rows of text: an item and a style give a prompt, a target and the byte ends of their segments.

The templates are those the evaluation tasks use, so a model is asked at test time in words it was trained on. `RowFile` reads rows in
batches, for data that does not fit in memory; `write_jsonl` exports them for other programs, one JSON object a line.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from mtkv.data.items import Item, Language
from mtkv.provenance.files import atomic_path

ROW_COLUMNS = (
    "id",
    "dataset",
    "style",
    "question",
    "reasoning",
    "answer",
    "prompt",
    "target",
    "question_hash",
    "prompt_end",
    "reasoning_end",
    "text_end",
)
TEST_COLUMNS = ("id", "question", "choices", "gold", "answer", "cluster", "question_hash")


@dataclass(frozen=True)
class Style:
    """The templates of one way to write a row. `reasoning` may be empty: then the row has no reasoning segment."""

    prompt: str
    reasoning: str
    answer: str


STYLES: dict[tuple[Language, str], Style] = {
    ("en", "cot"): Style("Question: {question}\nReason:", " {reasoning}", "\nAnswer: {answer}"),
    ("en", "direct"): Style("Question: {question}\nAnswer:", "", " {answer}"),
    ("zh", "cot"): Style("问题：{question}\n推理：", "{reasoning}", "\n答案：{answer}"),
    ("zh", "direct"): Style("问题：{question}\n答案：", "", "{answer}"),
}


@dataclass(frozen=True)
class Question:
    """One item with its dataset, language, number within the dataset, and the hash of its normalised question."""

    dataset: str
    language: Language
    number: int
    question_hash: str
    item: Item

    @property
    def id(self) -> str:
        """The id of the question; rows add their style."""
        return f"{self.dataset}-{self.number:06d}"


def row(question: Question, style: str) -> dict[str, str | int]:
    """One row with the columns `ROW_COLUMNS`.

    `prompt_end`, `reasoning_end` and `text_end` are UTF-8 byte offsets into `prompt + target`; the answer segment begins at
    `reasoning_end` and includes the words that announce it. Without reasoning, `reasoning_end == prompt_end`.
    """
    written = STYLES[question.language, style]
    item = question.item
    prompt = written.prompt.format(question=item.question)
    reasoning = written.reasoning.format(reasoning=item.reasoning)
    answer = written.answer.format(answer=item.answer)
    prompt_end = len(prompt.encode())
    reasoning_end = prompt_end + len(reasoning.encode())
    return {
        "id": f"{question.id}-{style}",
        "dataset": question.dataset,
        "style": style,
        "question": item.question,
        "reasoning": item.reasoning if reasoning else "",
        "answer": item.answer,
        "prompt": prompt,
        "target": reasoning + answer,
        "question_hash": question.question_hash,
        "prompt_end": prompt_end,
        "reasoning_end": reasoning_end,
        "text_end": reasoning_end + len(answer.encode()),
    }


def segment_ends(rows: pd.DataFrame) -> Sequence[tuple[int, int] | None]:
    """(prompt_end, reasoning_end) of every row, in bytes; None for each row when the frame lacks these columns."""
    if "prompt_end" not in rows or "reasoning_end" not in rows:
        return [None] * len(rows)
    return list(zip(rows["prompt_end"], rows["reasoning_end"], strict=True))


def rows_frame(questions: Iterable[Question], styles: Iterable[str]) -> pd.DataFrame:
    """Every question in every style, styles of one question next to each other; columns `ROW_COLUMNS`."""
    styles = list(styles)
    return pd.DataFrame([row(question, style) for question in questions for style in styles], columns=list(ROW_COLUMNS))


def test_frame(questions: Iterable[Question]) -> pd.DataFrame:
    """Test questions of one dataset; columns `TEST_COLUMNS`, `choices` as lists (empty when the answer is generated)."""
    rows = [test_row(question.id, question.item, question.question_hash) for question in questions]
    return pd.DataFrame(rows, columns=list(TEST_COLUMNS))


def test_row(name: str, item: Item, digest: str) -> dict[str, Any]:
    """One test question with the columns `TEST_COLUMNS`, by its id, and the hash of its normalised question."""
    item_values = (item.question, list(item.choices), item.gold, item.answer, item.cluster)
    return dict(zip(TEST_COLUMNS, (name, *item_values, digest), strict=True))


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


COLUMNS = ("id", "dataset", "style", "prompt", "target", "prompt_end", "reasoning_end")
PIECE = 1000  # default number of rows in memory at once
READ_BYTES = 1 << 20  # without a buffer, pyarrow reads a whole column of a row group at once


@dataclass(frozen=True)
class RowFile:
    """The rows of a parquet file from one of `sources` that are written in one of `styles`, the first `limit` of them; None: all."""

    path: Path
    styles: Sequence[str] | None = None
    limit: int | None = None
    piece: int = PIECE
    sources: Sequence[str] | None = None

    def pieces(self) -> Iterator[pd.DataFrame]:
        """The rows in the file's order, as frames of at most `piece` rows with those of `COLUMNS` that the file has."""
        left = self.limit
        with pq.ParquetFile(self.path, buffer_size=READ_BYTES) as file:
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            for batch in file.iter_batches(self.piece, columns=columns):
                kept = chosen(batch.to_pandas(), self.styles, self.sources)
                kept = kept.head(len(kept) if left is None else left).reset_index(drop=True)
                if len(kept):
                    yield kept
                left = None if left is None else left - len(kept)
                if left == 0:
                    return


def chosen(rows: pd.DataFrame, styles: Sequence[str] | None, sources: Sequence[str] | None) -> pd.DataFrame:
    """Those of `rows` that are written in one of `styles` and come from one of `sources`; None: from all."""
    for column, allowed in (("style", styles), ("dataset", sources)):
        rows = rows if allowed is None else rows[rows[column].isin(allowed)]
    return rows


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


def check_files(files: Sequence[RowFile], where: str) -> None:
    """`check_rows` of all rows of `files` together, in batches: only an 8-byte hash of each row's id stays in memory."""
    seen = []
    for frame in _all_pieces(files):
        check_rows(frame, where)
        seen.append(_hashes(frame))
    hashes, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *seen]), return_counts=True)
    suspects = hashes[counts > 1]
    if len(suspects):
        check_rows(pd.concat([frame[np.isin(_hashes(frame), suspects)] for frame in _all_pieces(files)]), where)


def _all_pieces(files: Sequence[RowFile]) -> Iterator[pd.DataFrame]:
    return (frame for file in files for frame in file.pieces())


def _hashes(frame: pd.DataFrame) -> np.ndarray:
    return pd.util.hash_array(frame["id"].to_numpy(dtype=object), categorize=False)
