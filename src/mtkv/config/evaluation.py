"""The section `evaluation`: how runs answer the datasets' questions."""

from typing import Literal

from pydantic import Field

from mtkv.config.base import Section


class EvaluationConfig(Section):
    """Settings of the stage `predictions`."""

    jobs: Literal["per_run", "per_dataset"] = Field(
        default="per_run",
        description="per_run: one job answers all datasets of a run. per_dataset: one job each, for large models.",
    )
    batch_size: int = Field(default=64, ge=1, description="Questions answered at once.")
    max_new_tokens: int = Field(default=48, ge=1, description="Longest generated answer, in tokens.")
    num_fewshot: int = Field(default=0, ge=0, description="Solved examples in front of each question.")
    limit: int | None = Field(default=None, ge=1, description="Only this many questions per dataset; null: all.")
