"""Solved examples in prompts: training rows for the small tasks, and a look at those that lm-eval's own task files bring.

Examples from a split of the benchmark's files are compared with its test questions by the data stage (`mtkv.data.testsets`).
"""

from pathlib import Path
from typing import Any

import pandas as pd
from lm_eval.api.task import ConfigurableTask

from mtkv.data.splits import question_hash


def solved_examples(config: dict[str, Any], path: Path, count: int) -> list[dict[str, Any]]:
    """Training rows in the shape of test documents, with the whole target in the place of the answer."""
    rows = pd.read_parquet(path, columns=["dataset", "style", "question", "target"])
    style = "cot" if config["output_type"] == "generate_until" else "direct"
    rows = rows[(rows["dataset"] == config["task"]) & (rows["style"] == style)].head(count)
    if len(rows) < count:
        raise ValueError(
            f"evaluation.num_fewshot: {count} is more than the {len(rows)} {style} rows of {config['task']} in {path}"
        )
    delimiter = config.get("target_delimiter", " ")  # lm-eval puts it back between the prompt and the answer
    targets = [target.removeprefix(delimiter) for target in rows["target"]]
    return [
        {"question": question, "choices": [target], "gold": 0, "answer": target}
        for question, target in zip(rows["question"], targets, strict=True)
    ]


def leave_out_asked(task: ConfigurableTask) -> tuple[int, int]:
    """Compare lm-eval's own examples with the questions of `task`, as its prompt writes both: how many there are, and are asked.

    Those that the task's file holds (`fewshot_config: samples`) and that are asked are left out, and the task shows as many as are left.
    Where the examples are the tested questions themselves (GPQA), each counts and stays; lm-eval shows no question its own record.
    """
    asked = {question_hash(str(task.doc_to_text(document))) for document in task.eval_docs}
    examples = list(task.sampler.df)
    kept = [each for each in examples if question_hash(str(task.doc_to_text(each))) not in asked]
    if task.fewshot_cfg.samples is not None:
        task.sampler.replace_df(kept)
        task.set_config("num_fewshot", min(task.config.num_fewshot, len(kept)))
    return len(examples), len(examples) - len(kept)
