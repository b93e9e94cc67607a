"""The sections `comparison` and `claims`: the statistics of a study and the sentences they support or refute.

All thresholds are in percentage points of accuracy.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mtkv.config.base import Name, Section, distinct, problem


class ComparisonConfig(Section):
    """Settings of the paired statistics."""

    baseline: Name = Field(default="sft", description="Arm that every other arm is compared with.")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Coverage of the intervals.")
    resamples: int = Field(default=5000, ge=10, description="Bootstrap resamples.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of the bootstrap.")
    equivalence_margin: float = Field(
        default=1.0, gt=0, le=100, description="Points that two arms may differ by and still count as equivalent."
    )
    min_clusters: int = Field(
        default=10,
        ge=2,
        description="Clusters from which on a dataset's errors are those of whole clusters; with fewer, of items.",
    )
    tolerance: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="Largest relative difference in steps, rows and tokens between trained arms.",
    )


class _Claim(Section):
    statement: str = Field(min_length=1, description="The sentence to be supported or refuted, for the report.")
    arm: Name = Field(description="Arm the claim is about.")
    level: Literal["minimum", "ideal", "stretch"] | None = Field(
        default=None, description="Grade that this claim belongs to; null: none."
    )

    @model_validator(mode="after")
    def _arms_differ(self) -> Self:
        for field in ("baseline", "twin", "reference"):
            if getattr(self, field, None) == self.arm:
                raise problem(f"{self.arm!r} is the claim's own arm; another arm is needed", field)
        others: list[str] = getattr(self, "baselines", [])
        if self.arm in others:
            message = f"{self.arm!r} is the claim's own arm; other arms are needed"
            raise problem(message, "baselines", others.index(self.arm))
        return self


class DifferenceClaim(_Claim):
    """arm − baseline > threshold in macro accuracy, and the same against the control twin if there is one."""

    kind: Literal["difference"] = Field(description="Kind of claim: the difference of two arms.")
    baseline: Name = Field(description="Arm it is compared with.")
    threshold: float = Field(default=0.0, ge=-100, le=100, description="Points that the difference must exceed.")
    twin: Name | None = Field(default=None, description="Control arm that `arm` must beat as well; null: none.")


class EquivalentClaim(_Claim):
    """arm is as good as baseline: their macro accuracies differ by less than the margin, in either direction."""

    kind: Literal["equivalent"] = Field(description="Kind of claim: two arms are as good as each other.")
    baseline: Name = Field(description="Arm it is compared with.")
    margin: float = Field(gt=0, le=100, description="Points that the difference must stay below, up or down.")


class DatasetsImprovedClaim(_Claim):
    """arm is better than baseline on at least so many datasets."""

    kind: Literal["datasets_improved"] = Field(description="Kind of claim: the number of datasets that improve.")
    baseline: Name = Field(description="Arm it is compared with.")
    at_least: int = Field(ge=1, description="Number of datasets that must improve.")


class AccuracyClaim(_Claim):
    """The accuracy of an arm on one dataset reaches the threshold."""

    kind: Literal["accuracy"] = Field(description="Kind of claim: an accuracy that is reached.")
    dataset: Name = Field(description="Dataset it is measured on; macro: the mean over all.")
    threshold: float = Field(ge=0, le=100, description="Accuracy to reach, in percent.")


class ReachesClaim(_Claim):
    """arm − (the weakest of baselines) ≥ threshold in macro accuracy."""

    kind: Literal["reaches"] = Field(description="Kind of claim: the level of the weakest of some arms is reached.")
    baselines: Annotated[list[Name], AfterValidator(distinct)] = Field(
        min_length=1, description="Arms, of which the weakest counts."
    )
    threshold: float = Field(
        default=0.0, ge=-100, le=100, description="Margin in points; negative: may be that much worse."
    )


class DifferClaim(_Claim):
    """The arms, `arm` and `baselines`, are not all equally good in macro accuracy: at least two of them differ."""

    kind: Literal["differ"] = Field(description="Kind of claim: some arms are not all equally good.")
    baselines: Annotated[list[Name], AfterValidator(distinct)] = Field(
        min_length=1, description="The arms besides `arm`, of which any two may differ."
    )


class RecoversClaim(_Claim):
    """(arm − baseline) ÷ (reference − baseline) in macro accuracy exceeds the threshold: how much of a known gain an arm gets."""

    kind: Literal["recovers"] = Field(description="Kind of claim: the share of another arm's gain.")
    baseline: Name = Field(description="Arm that both gains are counted from, such as equal weights.")
    reference: Name = Field(description="Arm whose gain is 100 %, such as the oracle.")
    threshold: float = Field(default=0.0, ge=-100, le=200, description="Share of the gain to exceed, in percent.")


Claim = Annotated[
    DifferenceClaim
    | EquivalentClaim
    | DatasetsImprovedClaim
    | AccuracyClaim
    | ReachesClaim
    | DifferClaim
    | RecoversClaim,
    Field(discriminator="kind"),
]
