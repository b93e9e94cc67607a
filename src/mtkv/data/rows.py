"""Write items as rows of text: an item and a style give a prompt, a target and the byte ends of their segments.

The templates are those the evaluation tasks use, so a model is asked at test time in words it was trained on. `write_jsonl` exports
rows for other programs, one JSON object a line.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    return pd.DataFrame(
        [
            {
                "id": question.id,
                "question": question.item.question,
                "choices": list(question.item.choices),
                "gold": question.item.gold,
                "answer": question.item.answer,
                "cluster": question.item.cluster,
                "question_hash": question.question_hash,
            }
            for question in questions
        ],
        columns=list(TEST_COLUMNS),
    )


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
