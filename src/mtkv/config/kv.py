"""The `kv` part of an arm: which teachers, how their KV is aligned and fused, and the loss that pulls the student to it."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mtkv.config.base import Name, Section, distinct, problem
from mtkv.config.digest import digest_of

WEIGHT_TOLERANCE = 1e-6


class AlignConfig(Section):
    """How a teacher's KV is brought to the student's tokens, layers and width."""

    time: Literal["sync"] = Field(
        default="sync", description="sync: match tokens that end at the same byte of the text."
    )
    layers: Literal["ratio"] = Field(
        default="ratio", description="ratio: spread the student's layers evenly over the teacher's."
    )
    map: Literal["ridge"] = Field(
        default="ridge", description="ridge: closed-form regularised linear map, fitted before training."
    )
    ridge: float = Field(
        default=1.0e-3, ge=0, description="Strength of the ridge, relative to the mean variance of the channels."
    )

    @property
    def slug(self) -> str:
        """Readable and unique name for files that depend on these settings, for instance `ratio-ridge-1a2b3c`."""
        return f"{self.layers}-{self.map}-{digest_of(self)[:6]}"


class EntropyConfig(Section):
    """Term on the entropy of a learnable router's weights."""

    target: Literal["specialized", "diverse"] = Field(
        default="specialized",
        description="specialized: low entropy, one teacher per row. diverse: high entropy, all teachers.",
    )
    strength: float = Field(default=0.01, ge=0, description="Weight of the term in the loss; 0 switches it off.")


class FusionConfig(Section):
    """How the KV of several teachers become one target."""

    strategy: Literal["fixed", "similarity", "learnable"] = Field(
        default="fixed",
        description="Where the weights of the teachers come from: given, from similarity, or from a trained router.",
    )
    weights: list[Annotated[float, Field(ge=0)]] | None = Field(
        default=None, description="Strategy fixed only: one weight per teacher, summing to 1. null: equal weights."
    )
    temperature: float = Field(
        default=1.0, gt=0, description="Temperature of the softmax over teachers (similarity, learnable)."
    )
    hidden: int = Field(default=32, ge=1, description="Hidden width of the learnable router.")
    entropy: EntropyConfig = Field(default=EntropyConfig(), description="Entropy term of the learnable router.")

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.weights is None:
            return self
        if self.strategy != "fixed":
            raise problem(f"given, but strategy {self.strategy} makes its own; allowed: null", "weights")
        if abs(sum(self.weights) - 1) > WEIGHT_TOLERANCE:
            raise problem(f"{self.weights} sums to {sum(self.weights):.6g}, not to 1", "weights")
        return self


class KVLossConfig(Section):
    """Distance between the student's KV and the fused target."""

    distance: Literal["mse", "l1", "smooth_l1"] = Field(
        default="mse", description="Distance of keys and of values, per element."
    )
    lambda_k: float = Field(default=1.0, ge=0, description="Weight of the keys' distance.")
    lambda_v: float = Field(default=1.0, ge=0, description="Weight of the values' distance.")
    beta: float = Field(
        default=0.1, ge=0, description="Weight of 1 − centred cosine similarity, over keys and values together."
    )


class KVConfig(Section):
    """KV distillation from one or several teachers."""

    teachers: Annotated[list[Name], AfterValidator(distinct)] = Field(
        min_length=1, description="Ids of the teachers whose KV is fused, in the order of `fusion.weights`."
    )
    align: AlignConfig = Field(default=AlignConfig(), description="How teachers are aligned to the student.")
    fusion: FusionConfig = Field(default=FusionConfig(), description="How teachers are fused.")
    loss: KVLossConfig = Field(default=KVLossConfig(), description="Loss between student and fused teachers.")
    control: Literal["none", "shuffle_items", "shuffle_time", "gaussian", "zero_weight"] = Field(
        default="none",
        description="What replaces the teachers' KV to test whether its content matters; none: nothing does.",
    )

    @model_validator(mode="after")
    def _fusion_fits_teachers(self) -> Self:
        count, weights = len(self.teachers), self.fusion.weights
        if weights is not None and len(weights) != count:
            message = f"{weights} has length {len(weights)}, but there are {count} teachers; one weight each, or null"
            raise problem(message, "fusion", "weights")
        if count == 1 and self.fusion.strategy != "fixed":
            raise problem(
                f"{self.fusion.strategy!r} needs two teachers or more; allowed for one: fixed", "fusion", "strategy"
            )
        return self
