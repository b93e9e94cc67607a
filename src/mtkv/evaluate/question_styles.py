"""Questions asked in another style than their task's: `evaluation.style: cot` asks each as rows of style `cot` are written.

A student that was trained on such rows only, with its chain or with latents in place of it, has never seen "Answer:" behind a question.
So a task of choices is asked for the reason too, and the answer it says is compared with the right one as text.
"""

import re
from typing import Any

from mtkv.data.items import Task
from mtkv.data.rows import STYLES, Style

NO_ANSWER = "[no answer]"
GENERATED = {
    "output_type": "generate_until",
    "doc_to_target": "answer",
    "target_delimiter": " ",
    "generation_kwargs": {"until": ["\n\n"], "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
OF_CHOICES = ("doc_to_choice",)


def in_style(config: dict[str, Any], style: str) -> dict[str, Any]:
    """The config of one of our lm-eval tasks, asked in `style`; one that already asks so stays as it is.

    Raises ValueError for a task whose prompt is that of no row.
    """
    if style == "task":
        return config
    language = next((name for (name, _), row in STYLES.items() if question_text(row) == config["doc_to_text"]), None)
    if language is None:
        raise ValueError(
            f"{config['task']}: its prompt {config['doc_to_text']!r} is not that of a row; style must be task"
        )
    row = STYLES[language, style]
    if question_text(row) == config["doc_to_text"]:
        return config
    kept = {key: value for key, value in config.items() if key not in OF_CHOICES}
    return kept | GENERATED | {"doc_to_text": question_text(row), "filter_list": [answer_filter(row)]}


def config_of(task: Task) -> dict[str, Any]:
    """A small task as lm-eval's config: asked for the reason and the answer behind it, or for one of its choices."""
    common = {
        "task": task.name,
        "dataset_path": "parquet",
        "test_split": "test",
        "metadata": {"version": 1.0, "synthetic": True},
    }
    if task.answering == "generation":
        row = STYLES[task.language, "cot"]
        return common | GENERATED | {"doc_to_text": question_text(row), "filter_list": [answer_filter(row)]}
    choices = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
    delimiter = "" if task.language == "zh" else " "
    metric = {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
    asked = {"doc_to_text": question_text(STYLES[task.language, "direct"]), "target_delimiter": delimiter}
    return common | choices | asked | metric


def question_text(row: Style) -> str:
    """The prompt of a row as lm-eval's template of a document."""
    return row.prompt.format(question="{{question}}")


def answer_filter(row: Style) -> dict[str, Any]:
    """lm-eval's filter for what stands behind the words that announce the answer, to the end of the line."""
    announced = row.answer.format(answer="").strip()
    extract = {"function": "regex", "regex_pattern": f"{re.escape(announced)} *(.+)", "group_select": 0}
    return {"name": "answer", "filter": [extract | {"fallback": NO_ANSWER}, {"function": "take_first"}]}
