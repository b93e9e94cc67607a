"""The section `data` and the names of the datasets that each mixture offers."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mtkv.config.base import NAME_PATTERN, Name, Registered, Section, distinct, problem, without_unset
from mtkv.config.errors import unknown
from mtkv.registry import Registry

POCKET_TASKS = Registry("mtkv.data.pocket", "TASKS")
REAL_SOURCES = Registry("mtkv.data.sources", "SOURCES")
REAL_BENCHMARKS = Registry("mtkv.data.benchmarks", "BENCHMARKS")
POCKET_DATASETS, SOURCES, BENCHMARKS = POCKET_TASKS.names, REAL_SOURCES.names, REAL_BENCHMARKS.names
# The test sets of each mixture, and what its `data.sources` may name, besides those of `data.extra`.
MIXTURES: dict[str, tuple[str, ...]] = {"pocket": POCKET_DATASETS, "multi_reasoning_cot_direct": BENCHMARKS}
SOURCES_OF: dict[str, tuple[str, ...]] = {"pocket": POCKET_DATASETS, "multi_reasoning_cot_direct": SOURCES}
# Defaults of a mixture that differ from the fields' own.
MIXTURE_DEFAULTS: dict[str, dict[str, Any]] = {
    "multi_reasoning_cot_direct": {"train_rows": 15_000, "validation_rows": 2_000, "test_items": None}
}

SourceName = Annotated[str, Registered(REAL_SOURCES, POCKET_TASKS, other=NAME_PATTERN)]


class DataConfig(Section):
    """Rows of text that teachers read and the student trains on, and the size of the tests."""

    mixture: Literal["pocket", "multi_reasoning_cot_direct"] = Field(
        default="pocket",
        description="Which questions the rows are made from: synthetic ones of this package, or seven real sources.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Seed of the questions and of the split; independent of the runs' seeds."
    )
    train_rows: int = Field(
        default=4000,
        ge=1,
        description="Rows to train on, all datasets and styles together. With real sources 15000 where nothing is said.",
    )
    validation_rows: int = Field(
        default=400,
        ge=1,
        description="Rows for validation losses and routing weights. With real sources 2000 where nothing is said.",
    )
    calibration_rows: int = Field(
        default=400, ge=1, description="Rows on which the maps are fitted; in no other split."
    )
    test_items: int | None = Field(
        default=200, ge=1, description="Test questions per dataset; null: all that a real benchmark has."
    )
    evaluate_on: Literal["test", "validation"] = Field(
        default="test",
        description="Mixture pocket only: `validation` scores questions that neither training nor the test has, to choose a setting by.",
    )
    styles: Annotated[list[Literal["cot", "direct"]], AfterValidator(distinct)] = Field(
        default=["cot", "direct"],
        min_length=1,
        description="How rows are written: with the chain of thought (cot), with the answer only (direct), or both.",
    )
    folder: str | None = Field(
        default=None,
        min_length=1,
        description="Real sources only: folder with one folder of files per source and benchmark; null: the hub or its cache.",
    )
    sources: Annotated[list[SourceName], AfterValidator(distinct), Field(min_length=1)] | None = Field(
        default=None,
        description="Those to train on: real sources, or with mixture pocket its datasets; null: all but gsm8k_aug and gsm8k_aug_nl.",
    )
    chinese_share: float = Field(
        default=0.2, ge=0, le=1, description="Real sources only: share of the rows that comes from Chinese sources."
    )
    max_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Real sources only: questions with a longer row (UTF-8) are left out; null: none.",
    )
    subsets: dict[Name, Annotated[int, Field(ge=1)]] = Field(
        default={},
        description="Real benchmarks only: test questions of single datasets, instead of test_items. Drawn by the hash of seed and id.",
    )
    extra: dict[Name, Annotated[str, Registered()]] = Field(
        default={},
        description="Datasets of your own: name → module:name. Mixture pocket: a Task, trained on and tested as the others. Real sources: "
        "a Source where data.sources names it, else a Benchmark; its files lie in the folder <name> of data.folder.",
    )
    revisions: dict[Name, str] = Field(
        default={}, description="Revision on the hub of single sources and benchmarks; main for the others."
    )

    @property
    def datasets(self) -> tuple[str, ...]:
        """The test sets that there are: those of the mixture and one's own."""
        trained_on = () if self.mixture == "pocket" else self.sources or ()
        return (*MIXTURES[self.mixture], *(name for name in self.extra if name not in trained_on))

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset(self, handler(self), "extra")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_mixture(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        mixture = given.get("mixture")
        return (MIXTURE_DEFAULTS.get(mixture, {}) if isinstance(mixture, str) else {}) | given

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        if self.mixture == "pocket":
            for field in ("folder", "max_bytes", "subsets", "revisions"):
                if getattr(self, field):
                    raise problem("given, but mixture pocket makes its own questions", field)
            if self.test_items is None:
                raise problem("null is not allowed with mixture pocket; allowed: a number", "test_items")
        elif self.evaluate_on != "test":
            raise problem("validation needs mixture pocket: real sources are not the benchmarks", "evaluate_on")
        for name in self.extra:
            if name in (*POCKET_DATASETS, *SOURCES, *BENCHMARKS):
                raise problem("is a dataset of this package; choose another name", "extra", name)
        allowed = (*SOURCES_OF[self.mixture], *self.extra)
        for place, name in enumerate(self.sources or []):
            if name not in allowed:
                raise problem(unknown(name, f"a source of {self.mixture}", allowed), "sources", place)
        for field, known in (
            ("subsets", (*BENCHMARKS, *self.extra)),
            ("revisions", tuple(dict.fromkeys((*SOURCES, *BENCHMARKS, *self.extra)))),
        ):
            for name in getattr(self, field):
                if name not in known:
                    raise problem(unknown(name, f"a dataset of {self.mixture}", known), field, name)
        return self
