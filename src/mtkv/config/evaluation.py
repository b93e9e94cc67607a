"""The section `evaluation`: how runs answer the datasets' questions."""

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mtkv.config.base import Name, Section, problem
from mtkv.config.data import BENCHMARKS, REAL_BENCHMARKS
from mtkv.config.errors import unknown

# lm-eval's tasks for each benchmark; the first is the default.
LM_EVAL_TASKS = {name: REAL_BENCHMARKS.keys_of(name, "tasks") for name in BENCHMARKS}

# lm-eval's tasks that can be asked as rows of style cot are written.
COT_TASKS = ("gsm8k",)


class EvaluationConfig(Section):
    """Settings of the stage `predictions`."""

    jobs: Literal["per_run", "per_dataset"] = Field(
        default="per_run",
        description="per_run: one job answers all datasets of a run. per_dataset: one job each, for large models.",
    )
    backend: Literal["hf", "vllm"] = Field(
        default="hf",
        description="What runs the models. hf: transformers. vllm: vLLM, an extra for GPUs (pip install mtkv[vllm]); it batches by itself.",
    )
    batch_size: int = Field(
        default=64, ge=1, description="Questions answered at once at most; fewer where memory does not hold them."
    )
    max_new_tokens: int = Field(default=48, ge=1, description="Longest generated answer, in tokens.")
    num_fewshot: int | None = Field(
        default=0,
        ge=0,
        description="Solved examples in front of each question; null: as many as each task of lm-eval has by default, 0 in mixture "
        "pocket. Tasks that lm-eval defines without examples stay so.",
    )
    limit: int | None = Field(default=None, ge=1, description="Only this many questions per dataset; null: all.")
    tasks: dict[Name, str] = Field(
        default={}, description="lm-eval's task for single benchmarks, where it is another than the default."
    )

    style: Literal["task", "cot"] = Field(
        default="task",
        description="How questions are asked. task: as each task has it. cot: all as rows of style cot are written, for the reason first; "
        "the answer is generated and compared as text. For students that were trained on such rows only.",
    )

    @model_serializer(mode="wrap")
    def _without_default_style(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if (key, value) != ("style", "task")}

    @model_validator(mode="after")
    def _tasks_are_known(self) -> Self:
        for dataset, task in self.tasks.items():
            if dataset not in LM_EVAL_TASKS:
                raise problem(unknown(dataset, "a benchmark of lm-eval", LM_EVAL_TASKS), "tasks", dataset)
            if task not in LM_EVAL_TASKS[dataset]:
                raise problem(unknown(task, f"a task for {dataset}", LM_EVAL_TASKS[dataset]), "tasks", dataset)
        return self

    def task_of(self, dataset: str) -> str | None:
        """lm-eval's task for a benchmark; None for one's own, which has its own."""
        return self.tasks.get(dataset) or next(iter(LM_EVAL_TASKS.get(dataset, ())), None)
