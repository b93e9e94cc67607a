"""Which training texts share words with a test set: the same normalised question, or any 13 words in a row.

Thirteen words is the length of the contamination check of GPT-3 (Brown et al. 2020, appendix C). Chinese is written without
spaces; there every character counts as a word. Test questions shorter than that are found by their whole text alone.
"""

import re
from collections.abc import Iterable, Iterator

from mtkv.data.splits import normalised, question_hash

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
