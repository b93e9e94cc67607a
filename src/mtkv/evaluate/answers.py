"""Rows of the predictions file, out of lm-eval's log of one question."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mtkv.evaluate.tasks import StudyTask, UnanswerableError

Sample = dict[str, Any]
Row = dict[str, Any]


def answer_row(task: StudyTask, sample: Sample) -> Row:
    """One row with the columns of the predictions file, named and ordered as the study's question."""
    question = task.questions[sample["doc_id"]]
    common = {"item": question["id"], "cluster": question["cluster"], "prompt_hash": sample["prompt_hash"]}
    return common | MAKERS[task.OUTPUT_TYPE](task, question, sample) | {"correct": float(sample[task.metric])}


def _generation(task: StudyTask, question: Row, sample: Sample) -> Row:
    return {
        "output": sample["resps"][0][0],
        "loglikelihoods": None,
        "filtered": sample["filtered_resps"][0],
        "gold": question["answer"],
    }


def _choice(task: StudyTask, question: Row, sample: Sample) -> Row:
    """Log-likelihoods in the order of the question's choices. Raises UnanswerableError when one is not finite."""
    loglikelihoods = [responses[0][0] for responses in sample["resps"]]
    if not np.isfinite(loglikelihoods).all():
        raise UnanswerableError(f"log-likelihoods of item {question['id']} are not finite: {loglikelihoods}")
    choices = question["choices"]
    if task.options:
        asked = [sample["doc"][field] for field in task.options]
        loglikelihoods = [loglikelihoods[place] for place in _places(choices, asked)]
    return {
        "output": None,
        "loglikelihoods": loglikelihoods,
        "filtered": choices[int(np.argmax(loglikelihoods))],
        "gold": choices[question["gold"]],
    }


def _places(choices: list[str], asked: list[str]) -> list[int]:
    """Where each choice stands among the options as asked; options of the same text in turn."""
    left = list(range(len(asked)))
    found = []
    for choice in choices:
        found.append(next(place for place in left if asked[place] == choice))
        left.remove(found[-1])
    return found


MAKERS: dict[str, Callable[[StudyTask, Row, Sample], Row]] = {
    "generate_until": _generation,
    "multiple_choice": _choice,
}
