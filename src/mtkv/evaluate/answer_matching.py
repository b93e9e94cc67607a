"""Rows of the predictions file out of lm-eval's log of one question, and the rules for a second look at them.

The second look asks of a generated answer whether the answer taken from the output and the verdict follow, by the rules of the very task
of lm-eval that was asked, as its file states them (its filters, what its metric ignores). How they are applied is written apart from
lm-eval, so that a mistake in either shows.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import digits, punctuation
from typing import Any

import numpy as np

from mtkv.evaluate.lm_eval_tasks import StudyTask, UnanswerableError


@dataclass(frozen=True)
class Rules:
    """How one task of lm-eval takes and compares generated answers.

    `taken`: its regex filters in turn, as mappings with lm-eval's `regex_pattern`, `group_select` and `fallback`; none: the answer is
    the whole output. `ignored`: options of lm-eval's metric exact_match. None in either: a function of the task's own, which lm-eval
    alone can judge.
    """

    taken: Sequence[Mapping[str, Any]] | None = None
    ignored: Mapping[str, Any] | None = field(default_factory=dict)

    def takes(self, filtered: str, output: str) -> bool:
        """Whether the answer `filtered` is what the filters find in `output`."""
        return self.taken is None or filtered == take(output, self.taken)

    def agrees(self, correct: float, filtered: str, gold: str) -> bool:
        """Whether the verdict `correct` follows from the answer taken and the benchmark's own."""
        if self.ignored is None:
            return correct in (0.0, 1.0)
        return correct == float(compared(filtered, **self.ignored) == compared(gold, **self.ignored))


def take(output: str, filters: Sequence[Mapping[str, Any]]) -> str:
    """What the regex filters leave of an output: the match chosen, of its groups the first that is not empty."""
    for options in filters:
        fallback, found = options.get("fallback", "[invalid]"), re.findall(options["regex_pattern"], output)
        chosen = found[options.get("group_select", 0)] if found else None
        if isinstance(chosen, tuple):
            chosen = next(filter(None, chosen), fallback)
        output = fallback if chosen is None else chosen.strip()
    return output


def compared(
    text: str,
    regexes_to_ignore: Sequence[str] | None = None,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> str:
    """What exact_match compares of a text; in numpy's arrays, which lm-eval uses, texts lose NULs at the end and cannot grow."""
    text = text.rstrip("\0")
    for pattern in regexes_to_ignore or ():
        text = re.sub(pattern, "", text).rstrip("\0")
    if ignore_case:
        text = text.lower()[: len(text)]
    removed = punctuation * ignore_punctuation + digits * ignore_numbers
    return "".join(character for character in text if character not in removed).rstrip("\0")


Sample = dict[str, Any]
Row = dict[str, Any]
# Options of lm-eval's metric exact_match that the second look knows; `WITHOUT_EFFECT` say nothing of one answer.
KNOWN = {"regexes_to_ignore", "ignore_case", "ignore_punctuation", "ignore_numbers"}
WITHOUT_EFFECT = {"metric", "aggregation", "higher_is_better"}


def answer_row(task: StudyTask, sample: Sample) -> Row:
    """One row with the columns of the predictions file; item, cluster and order of the choices are those of the study's question."""
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
    """The place of each choice among the options as asked; options of the same text in turn: [b, a, a] asked as [a, b, a] is [1, 0, 2]."""
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
