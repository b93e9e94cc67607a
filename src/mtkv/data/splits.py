"""Which split a question belongs to, how the splits are filled, and the check that they share no question.

The split is a function of the normalised question's hash alone. Whatever the seed or the sizes, a question that may be
tested can therefore never be trained on, in any study; the pocket models' own training draws from the train bins only.

`TestTexts` finds training texts that share words with a test set: the same normalised question, or any 13 words in a row, the length of
the contamination check of GPT-3 (Brown et al. 2020, appendix C). Chinese is written without spaces; there every character counts as a
word. Test questions shorter than that are found by their whole text alone.
"""

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import combinations
from random import Random
from typing import Any

import pandas as pd

from mtkv.data.items import Task
from mtkv.data.rows import Question

# which of the 16 bins of question hashes belong to which split
BINS: dict[str, range] = {
    "train": range(0, 10),
    "val": range(10, 11),
    "calibration": range(11, 12),
    "test": range(12, 16),
}
BIN_COUNT = 16
SPLITS: tuple[str, ...] = tuple(BINS)
DRAWS_WITHOUT_NEWS = 20_000

# Arithmetic signs are no punctuation; without them x+4-3 and x-4+3 would be one question.
_COLLAPSED = re.compile(r"[^\w+\-*/=()<>]+")


class LeakageError(ValueError):
    """Two splits share a question."""


def normalised(question: str) -> str:
    """Unicode NFKC, case folded, every run of white space and punctuation (arithmetic signs excepted) one space."""
    return _COLLAPSED.sub(" ", unicodedata.normalize("NFKC", question).casefold()).strip()


def question_hash(question: str) -> str:
    """SHA-256 of the normalised question, in hexadecimal."""
    return hashlib.sha256(normalised(question).encode()).hexdigest()


def split_of(digest: str, bins: Mapping[str, range] = BINS) -> str:
    """The split of a question, from its hash: that of `bins` which has its place among all `BIN_COUNT`."""
    place = int(digest[:8], 16) % BIN_COUNT
    return next(split for split, own in bins.items() if place in own)


def draw_questions(task: Task, seed: int, sizes: Mapping[str, int]) -> dict[str, list[Question]]:
    """Distinct questions of `task`, `sizes[split]` for each split, reproducible from `seed`.

    Raises ValueError naming the dataset and the split when the task has no more new questions to give.
    """
    random = Random(f"{seed}:{task.name}")
    seen: set[str] = set()
    drawn: dict[str, list[Question]] = {split: [] for split in sizes}
    idle = 0
    while any(len(drawn[split]) < size for split, size in sizes.items()):
        item = task.draw(random)
        digest = question_hash(item.question)
        split = split_of(digest)
        idle += 1
        if digest not in seen and len(drawn.get(split, ())) < sizes.get(split, 0):
            seen.add(digest)
            number = sum(len(questions) for questions in drawn.values())
            drawn[split].append(Question(task.name, task.language, number, digest, item))
            idle = 0
        if idle > DRAWS_WITHOUT_NEWS:
            have = {split: f"{len(drawn[split])} of {size}" for split, size in sizes.items()}
            raise ValueError(f"{task.name} has too few different questions: {have}; ask for fewer rows or test items")
    return drawn


def leakage(hashes: Mapping[str, Collection[str]]) -> dict[str, int]:
    """Number of shared question hashes for each pair of splits, keyed "train & test"."""
    return {
        f"{one} & {other}": len(set(hashes[one]) & set(hashes[other])) for one, other in combinations(sorted(hashes), 2)
    }


def assert_no_leakage(hashes: Mapping[str, Collection[str]]) -> dict[str, int]:
    """`leakage`, all zero. Raises LeakageError naming the pairs of splits that share questions."""
    counts = leakage(hashes)
    shared = {pair: count for pair, count in counts.items() if count}
    if shared:
        raise LeakageError(f"splits share questions: {shared}")
    return counts


def hashes_digest(hashes: Iterable[str]) -> str:
    """SHA-256 over the sorted distinct question hashes of a split."""
    return hashlib.sha256("\n".join(sorted(set(hashes))).encode()).hexdigest()


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


LENGTH = 13
_WORDS = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff_]+")


def words(text: str) -> list[str]:
    """The words of a text after the normalisation of the splits; each Chinese character is one."""
    return _WORDS.findall(normalised(text))


def grams(text: str, length: int = LENGTH) -> Iterator[int]:
    """Hashes of the runs of `length` words; none for a shorter text."""
    found = words(text)
    return (hash(tuple(found[start : start + length])) for start in range(len(found) - length + 1))


class TestTexts:
    """Hashes of all test questions and of their runs of 13 words, to compare training texts with."""

    __test__ = False

    def __init__(self, questions: Iterable[str]) -> None:
        questions = list(questions)
        self.hashes = {question_hash(question) for question in questions}
        self.grams = {gram for question in questions for gram in grams(question)}

    def shares(self, question: str, text: str) -> str | None:
        """ "text" when `question` is a test question, "ngram" when `text` shares 13 words in a row with one, or None."""
        if question_hash(question) in self.hashes:
            return "text"
        return "ngram" if any(gram in self.grams for gram in grams(text)) else None
