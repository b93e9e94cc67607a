"""The section `phases` of an arm's training: parts of it that follow each other inside the same steps, each with weights of its own."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from mtkv.config.base import Name, Section

Factor = Annotated[float, Field(ge=0)]


def _constant(given: Any) -> Any:
    """A number stands for a factor that stays as it is."""
    return [given, given] if isinstance(given, int | float) and not isinstance(given, bool) else given


FACTOR_SCHEMA = {"minimum": 0, "type": "number"}
Ramp = Annotated[
    list[Factor],
    BeforeValidator(_constant),
    Field(min_length=2, max_length=2),
    WithJsonSchema({"anyOf": [FACTOR_SCHEMA, {"items": FACTOR_SCHEMA, "maxItems": 2, "minItems": 2, "type": "array"}]}),
]


class Phase(Section):
    """A share of the steps, and what the losses are multiplied by meanwhile: a number, or [at its beginning, at its end] for a straight
    line between the two."""

    name: Name = Field(description="What the phase is called.")
    share: float = Field(gt=0, le=1, description="Share of the steps; those of all phases sum to 1.")
    ce: Ramp = Field(
        default=[1.0, 1.0],
        description="Factor of the losses on text: the cross-entropy, logit distillation, and in student_view latent those of the chain.",
    )
    kv: Ramp | None = Field(
        default=None,
        description="Factor of the KV loss, in arms with kv; null: 1. A router's own cross-entropy keeps its weight.",
    )
