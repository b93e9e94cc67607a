"""The `fusion` of several teachers into one target, of KV (arms' `kv`) and of next-token distributions (arms' `logits`)."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from mtkv.config.base import Name, Registered, Section, distinct, problem
from mtkv.registry import Registry

WEIGHT_TOLERANCE = 1e-6
ROUTERS = Registry("mtkv.fuse.routers", "ROUTERS")
ROW_STATISTICS = Registry("mtkv.kv.row_statistics", "ROW_STATISTICS")
ROUTERS_OF_LOGITS = "fixed, teacher_ce, confidence, task, random, oracle"
ROUTER_NETWORKS = Registry("mtkv.fuse.routers", "SCORERS")


class EntropyConfig(Section):
    """Term on the entropy of a learnable router's weights."""

    target: Literal["specialized", "diverse"] = Field(
        default="specialized",
        description="specialized: low entropy, one teacher per row. diverse: high entropy, all teachers.",
    )
    strength: float = Field(default=0.01, ge=0, description="Weight of the term in the loss; 0 switches it off.")


class FusionConfig(Section):
    """How the KV of several teachers become one target."""

    strategy: Annotated[str, Registered(ROUTERS)] = Field(
        default="fixed",
        description="Where the weights of the teachers come from. fixed: given. similarity: to the student's own KV. learnable: a "
        "trained router. teacher_ce: each teacher's likelihood of the row's answer. confidence: how sure each teacher is of its own next "
        "tokens there, right or wrong (minus their entropy). task: given, for each training source. Controls: random; oracle, the "
        "likeliest alone.",
    )
    weights: list[Annotated[float, Field(ge=0)]] | None = Field(
        default=None, description="Strategy fixed only: one weight per teacher, summing to 1. null: equal weights."
    )
    by_task: dict[Name, list[Annotated[float, Field(ge=0)]]] | None = Field(
        default=None,
        description="Strategy task only: one weight per teacher, summing to 1, for the rows of each training source; null takes one out.",
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="Temperature of the softmax over teachers (similarity, learnable, teacher_ce, confidence).",
    )
    similarity: Literal["cosine", "dot", "l2"] = Field(
        default="cosine", description="Strategy similarity only: measure."
    )
    prototypes: Literal["mean", "cls", "kmeans"] = Field(
        default="mean",
        description="What stands for a teacher's KV of a row: the mean over tokens, the first token, or cluster centres.",
    )
    router: Annotated[str, Registered(ROUTER_NETWORKS)] = Field(
        default="mlp", description="Strategy learnable only: kind of router."
    )
    hidden: int = Field(default=32, ge=1, description="Hidden width of the learnable router.")
    per_layer: bool = Field(default=False, description="Strategy learnable only: weights of their own for each layer.")
    objective: Literal["kv", "injected_ce"] = Field(
        default="kv",
        description="Strategy learnable only: what trains the router. kv: the KV loss, which favours the teacher that is easiest to "
        "imitate. injected_ce: the student's cross-entropy when it attends to the fused KV.",
    )
    entropy: EntropyConfig = Field(default=EntropyConfig(), description="Entropy term of the learnable router.")

    @property
    def row_statistics(self) -> list[str]:
        """What must be noted of each teacher's whole row for the router: names of `ROW_STATISTICS`."""
        return sorted(ROUTERS.needs(self.strategy))

    @field_validator("strategy")
    @classmethod
    def _can_be_noted(cls, strategy: str) -> str:
        if unknown := ROUTERS.needs(strategy).difference(ROW_STATISTICS.names):
            known = ", ".join(ROW_STATISTICS.names)
            raise problem(f"{strategy!r} needs {min(unknown)!r}, which no teacher gives; a router may need: {known}")
        return strategy

    @model_validator(mode="after")
    def _learnable_only(self) -> Self:
        if self.strategy != "learnable":
            for field, default in (("per_layer", False), ("objective", "kv"), ("router", "mlp")):
                if getattr(self, field) != default:
                    raise problem(f"{getattr(self, field)!r} needs strategy learnable; allowed: {default!r}", field)
        return self

    @field_validator("by_task", mode="before")
    @classmethod
    def _deleted_tasks(cls, given: Any) -> Any:
        """In an overlay, null deletes a source."""
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _by_task_fits(self) -> Self:
        if (self.by_task is not None) != (self.strategy == "task"):
            need = "strategy task needs it" if self.by_task is None else f"strategy is {self.strategy}; allowed: null"
            raise problem(f"{'null' if self.by_task is None else 'given'}, but {need}", "by_task")
        for task, weights in (self.by_task or {}).items():
            if abs(sum(weights) - 1) > WEIGHT_TOLERANCE:
                raise problem(f"{weights} sums to {sum(weights):.6g}, not to 1", "by_task", task)
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.weights is None:
            return self
        if self.strategy != "fixed":
            raise problem(f"given, but strategy {self.strategy} makes its own; allowed: null", "weights")
        if abs(sum(self.weights) - 1) > WEIGHT_TOLERANCE:
            raise problem(f"{self.weights} sums to {sum(self.weights):.6g}, not to 1", "weights")
        return self


class LogitConfig(Section):
    """Distillation of the next-token distribution of one or several teachers, which needs the student's own vocabulary."""

    teachers: Annotated[list[Name], AfterValidator(distinct)] = Field(
        min_length=1,
        description="Ids of teachers with the student's tokenizer, in the order of fusion's weights; they read along in training.",
    )
    fusion: FusionConfig = Field(
        default=FusionConfig(),
        description=f"How several teachers' distributions are mixed into one, row by row: {ROUTERS_OF_LOGITS}.",
    )
    alpha: float = Field(default=0.5, ge=0, le=1, description="Weight of the cross-entropy; the rest is the teacher's.")
    temperature: float = Field(default=2.0, gt=0, description="Temperature of both distributions.")

    @model_validator(mode="after")
    def _fusion_fits(self) -> Self:
        check_fusion(self.fusion, len(self.teachers))
        if self.fusion.strategy in ("similarity", "learnable"):
            message = f"{self.fusion.strategy!r} weighs teachers by their KV; allowed for logits: {ROUTERS_OF_LOGITS}"
            raise problem(message, "fusion", "strategy")
        return self


def check_fusion(fusion: FusionConfig, count: int) -> None:
    """Raises where a fusion's weights or strategy do not fit the number of teachers."""
    lists = {("weights",): fusion.weights} | {
        ("by_task", task): given for task, given in (fusion.by_task or {}).items()
    }
    for place, weights in lists.items():
        if weights is not None and len(weights) != count:
            message = f"{weights} has length {len(weights)}, but there are {count} teachers; one weight each"
            raise problem(message if place != ("weights",) else f"{message}, or null", "fusion", *place)
    if count == 1 and fusion.strategy != "fixed":
        raise problem(f"{fusion.strategy!r} needs two teachers or more; allowed for one: fixed", "fusion", "strategy")
