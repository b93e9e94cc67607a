"""The section `data` and the names of the datasets that each mixture offers."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mtkv.config.base import Section, distinct

POCKET_DATASETS = (
    "pocket_gsm8k",
    "pocket_math500",
    "pocket_bbh",
    "pocket_gpqa",
    "pocket_truthfulqa",
    "pocket_cmmlu",
    "pocket_ceval",
)
MIXTURES: dict[str, tuple[str, ...]] = {"pocket": POCKET_DATASETS}


class DataConfig(Section):
    """Rows of text that teachers read and the student trains on, and the size of the tests."""

    mixture: Literal["pocket"] = Field(default="pocket", description="Which questions the rows are made from.")
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Seed of the questions and of the split; independent of the runs' seeds."
    )
    train_rows: int = Field(default=4000, ge=1, description="Rows to train on, all datasets and styles together.")
    validation_rows: int = Field(default=400, ge=1, description="Rows for validation losses and routing weights.")
    calibration_rows: int = Field(
        default=400, ge=1, description="Rows on which the maps are fitted; in no other split."
    )
    test_items: int = Field(default=200, ge=1, description="Test questions per dataset.")
    styles: Annotated[list[Literal["cot", "direct"]], AfterValidator(distinct)] = Field(
        default=["cot", "direct"],
        min_length=1,
        description="How rows are written: with the chain of thought (cot), with the answer only (direct), or both.",
    )
