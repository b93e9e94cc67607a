"""Rows of the predictions file, out of lm-eval's log of one question."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mtkv.evaluate.answer_matching import Rules
from mtkv.evaluate.lm_eval_tasks import StudyTask, UnanswerableError

Sample = dict[str, Any]
Row = dict[str, Any]
# Options of lm-eval's metric exact_match that the second look knows; `WITHOUT_EFFECT` say nothing of one answer.
KNOWN = {"regexes_to_ignore", "ignore_case", "ignore_punctuation", "ignore_numbers"}
WITHOUT_EFFECT = {"metric", "aggregation", "higher_is_better"}


def answer_row(task: StudyTask, sample: Sample) -> Row:
    """One row with the columns of the predictions file, named and ordered as the study's question."""
    question = task.questions[sample["doc_id"]]
    common = {"item": question["id"], "cluster": question["cluster"], "prompt_hash": sample["prompt_hash"]}
    return common | MAKERS[task.OUTPUT_TYPE](task, question, sample) | {"correct": float(sample[task.metric])}


def rules_of(task: StudyTask) -> Rules:
    """How the task takes and compares generated answers, from its config: the filter and the metric that count."""
    named = [steps["filter"] for steps in task.config.filter_list or () if steps["name"] == task.filter]
    filters = [step for steps in named for step in steps if step["function"] != "take_first"]
    metric: dict[str, Any] = next(
        (options for options in task.config.metric_list if options["metric"] == task.metric), {}
    )
    ignored = {name: value for name, value in metric.items() if name not in WITHOUT_EFFECT}
    own = callable(task.config.process_results) or task.metric != "exact_match" or not ignored.keys() <= KNOWN
    return Rules(
        taken=filters if all(step["function"] == "regex" for step in filters) else None,
        ignored=None if own else ignored,
    )


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
    asked = [sample["doc"][field] for field in task.options] or choices
    if sorted(asked) != sorted(choices) or len(asked) != len(loglikelihoods):
        raise UnanswerableError(f"item {question['id']}: lm-eval asked {asked}, the question has {choices}")
    places = _places(choices, asked)
    return {
        "output": None,
        "loglikelihoods": [loglikelihoods[place] for place in places],
        # Of equally likely options lm-eval takes the one it asked first.
        "filtered": choices[places.index(int(np.argmax(loglikelihoods)))],
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
