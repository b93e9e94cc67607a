"""The section `phases` of an arm's training: parts of it that follow each other inside the same steps, each with weights of its own and,
where it says so, rows, layers and a learning rate."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
)

from mtkv.config.base import Name, Section, distinct, problem, without_unset
from mtkv.config.fusion import LogitConfig
from mtkv.config.kv import KVConfig, SupervisedLayers

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
    kv: Ramp | None = Field(default=None, description="Factor of the KV loss, in arms with kv; null: 1.")
    logits: Ramp | None = Field(
        default=None,
        description="Factor of the teachers' part of logit distillation, (1 − α)·T²·KL, in arms with logits; null: that of ce, which "
        "α·CE has in any case.",
    )
    router: Ramp | None = Field(
        default=None,
        description="Factor of a router's own cross-entropy (kv.fusion.objective injected_ce); null: 1.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Peak learning rate of the phase, which then has the arm's warmup_ratio and scheduler over its own steps, from 0; "
        "null: the arm's learning rate at that step of the whole training. AdamW goes on in any case.",
    )
    layers: SupervisedLayers | None = Field(
        default=None, description="Student layers that are supervised in the phase, as kv.loss.layers; null: those."
    )
    sources: Annotated[list[Name], AfterValidator(distinct), Field(min_length=1)] | None = Field(
        default=None, description="Training sources whose rows the phase reads; null: all. Needs training.steps."
    )
    rows: int | None = Field(
        default=None,
        ge=1,
        description="How many of the arm's rows (of its sources) the phase reads, the first ones; null: all. Needs training.steps.",
    )
    text: Literal["labelled", "prompts"] | None = Field(
        default=None,
        description="prompts: the rows end before their targets, which nothing in the phase reads: ce 0, and the KV of the prompt's tokens "
        "alone; labelled or null: rows as they are.",
    )

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        new = ("logits", "router", "learning_rate", "layers", "sources", "rows", "text")
        return without_unset(self, handler(self), *new)

    @property
    def selects_rows(self) -> bool:
        """Whether the phase reads only some of the arm's rows."""
        return self.sources is not None or self.rows is not None


def check_phases(
    phases: Sequence[Phase], kv: KVConfig | None, logits: LogitConfig | None, steps: int | None, rows: int | None
) -> None:
    """Raises where a phase has a factor of a loss or layers that the arm has not, trains nothing, or reads rows or answers that it cannot
    have; `steps` and `rows` are those of the arm's training."""
    routed = kv is not None and kv.fusion.objective == "injected_ce"
    router = (routed, "kv.fusion.objective injected_ce")
    parts = {"kv": (kv, "kv"), "layers": (kv, "kv"), "logits": (logits, "logits"), "router": router}
    for index, phase in enumerate(phases):
        place = ("training", "phases", index)
        for field, (part, name) in parts.items():
            if (given := getattr(phase, field)) is not None and not part:
                raise problem(f"{given} given, but the arm has no {name}; allowed: null", *place, field)
        weighed = {"ce": phase.ce, "logits": logits and phase.logits, "router": routed and (phase.router or [1.0])}
        read = [field for field, factors in weighed.items() if any(factors or [])]
        if not read and not (kv and any(phase.kv or [1.0])):
            raise problem(f"{phase.name!r} trains nothing; ce, or in an arm with kv kv, above 0", *place)
        if phase.selects_rows and steps is None:
            field = "rows" if phase.sources is None else "sources"
            raise problem("given, but training.steps is null; a phase with rows of its own needs it", *place, field)
        if phase.rows is not None and rows is not None and phase.rows > rows:
            raise problem(f"{phase.rows} given, but training.rows is {rows}; allowed: up to that", *place, "rows")
        if phase.text == "prompts":
            if read:
                given = getattr(phase, read[0])
                message = f"{given} given, but text is prompts, and this loss reads the targets; allowed: 0"
                raise problem(message, *place, read[0])
            assert kv is not None
            _check_prompts(kv)


def _check_prompts(kv: KVConfig) -> None:
    """Raises where an arm's targets of the prompt's tokens depend on what stands behind the prompt."""
    chosen = {
        ("align", "time"): (kv.align.time, "sync", "may match a prompt's token with what stands behind the prompt"),
        ("select", "method"): (kv.select.method, "full", "chooses among all of a row's tokens, not the prompt's"),
    }
    for place, (given, allowed, why) in chosen.items():
        if given != allowed:
            raise problem(f"{given!r} {why}; allowed with a phase of text prompts: {allowed}", "kv", *place)
    if read := kv.fusion.row_statistics:
        message = (
            f"{kv.fusion.strategy!r} reads the answer's {read[0]}; allowed with a phase of text prompts: the others"
        )
        raise problem(message, "kv", "fusion", "strategy")
