"""The `kv` part of an arm: which teachers, how their KV is aligned and fused, and the loss that pulls the student to it."""

import ast
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from mtkv.config.base import Name, Registered, Section, distinct, duplicates, problem, without_unset
from mtkv.config.fusion import FusionConfig, check_fusion
from mtkv.config.inject import FuserConfig, check_injection
from mtkv.provenance.digest import digest_of
from mtkv.registry import ImportPath, Registry

CLOSED_FORM_MAPS = Registry("mtkv.align.closed_form_maps", "MAP_FUNCTIONS")
TRAINED_MAPS = Registry("mtkv.align.adapters", "ADAPTERS")
SELECTORS = Registry("mtkv.kv.scores", "SCORES")
DISTANCES = Registry("mtkv.distill.kv_distance", "DISTANCES")
CONTROLS = Registry("mtkv.distill.controls", "CONTROLS")
OWN_TEACHER = "student"  # in `teachers` of an arm with latents: the student itself, reading the chain


def _range(given: Any) -> Any:
    if isinstance(given, list) and (len(given) != 2 or given[0] > given[1]):
        raise problem(f"{given} is no range; two layer numbers, the first not above the last")
    return given


SupervisedLayers = Annotated[
    Literal["all", "first", "middle", "last"] | list[Annotated[int, Field(ge=0)]], AfterValidator(_range)
]


class AlignConfig(Section):
    """How a teacher's KV is brought to the student's tokens, layers and width."""

    time: Literal["sync", "overlap", "iou", "resample", "truncate"] = Field(
        default="sync",
        description="sync: match tokens that end at the same byte of the text. overlap, iou: weight teacher tokens by common bytes. "
        "resample: interpolate in time within prompt, reasoning and answer. truncate: the n-th token with the n-th.",
    )
    layers: Literal["ratio", "uniform", "skip", "last_aligned", "interpolate", "cka", "origin"] = Field(
        default="ratio",
        description="ratio: spread the student's layers evenly over the teacher's, both ends kept. uniform: the middle of equal "
        "blocks. skip: every n-th layer. last_aligned: counted from the last layer. interpolate: between the two nearest layers. "
        "cka: the most similar layers on the calibration rows. origin: those that a pruned student's layers were taken from.",
    )
    cka_top_k: int = Field(default=2, ge=1, description="Layers cka only: teacher layers mixed for each student layer.")
    map: Annotated[str, Registered(CLOSED_FORM_MAPS, TRAINED_MAPS)] = Field(
        default="linear",
        description="identity (for a teacher of the student's own origin), ridge, procrustes: closed form, fitted before training and "
        "frozen. linear, two_step (width, then heads), elastic (bottleneck), z_space (both sides into a shared width): trained with the "
        "student. ridge and procrustes are fitted to the *untrained* student's KV, so they pull the student back to its beginning: "
        "for ablations. Of your own: a function is fitted in closed form, a class is trained.",
    )
    side: Literal["teacher", "student"] = Field(
        default="student",
        description="student: a trained map turns the student's KV towards the fixed teacher. teacher: the map turns the teacher's KV into "
        "a target in the student's space, which closed-form maps and z_space always do: their default.",
    )
    ridge: float = Field(
        default=1.0e-3, ge=0, description="Strength of the ridge, relative to the mean variance of the channels."
    )
    expansion: float = Field(default=1.0, gt=0, description="Map elastic only: width of its middle, in input widths.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Map elastic only: dropout in its middle.")
    shared_width: int = Field(default=64, ge=1, description="Map z_space only: width of the shared space.")

    @model_validator(mode="before")
    @classmethod
    def _side_of_the_map(cls, given: Any) -> Any:
        name = given.get("map") if isinstance(given, dict) else None
        if not isinstance(name, str) or cls.model_construct(map=name).maps_student:
            return given
        return {"side": "teacher"} | given

    @model_validator(mode="after")
    def _side_fits_map(self) -> Self:
        if self.side == "student" and not self.maps_student:
            allowed = [name for name in TRAINED_MAPS.names if "both sides" not in TRAINED_MAPS.needs(name)]
            raise problem(f"'student' needs a trained map; allowed with it: map {', '.join(allowed)}", "side")
        return self

    @property
    def trained(self) -> bool:
        """Whether the map learns together with the student."""
        return self.map in TRAINED_MAPS.names or isinstance(TRAINED_MAPS.defined(self.map), ast.ClassDef)

    @property
    def maps_student(self) -> bool:
        """Whether the map may turn the student's KV towards the teacher."""
        return self.trained and not self.both_sides

    @property
    def both_sides(self) -> bool:
        """Whether the map also maps the student, so that both are compared in a third space."""
        return "both sides" in TRAINED_MAPS.needs(self.map)

    @property
    def measured(self) -> bool:
        """Whether the loss is normalised by the standard deviation of the map's output over the step's own rows (trained maps)."""
        return self.trained and (self.side == "teacher" or self.both_sides)

    @property
    def slug(self) -> str:
        """Readable and unique name for files that depend on these settings, such as `ratio-ridge-1a2b3c`."""
        return f"{self.layers}-{self.map.rpartition(':')[2]}-{digest_of(self)[:6]}"


class SelectConfig(Section):
    """Which of a row's teacher tokens supervise the student (KV compression)."""

    method: Annotated[str, Registered(SELECTORS)] = Field(
        default="full",
        description="full: all. keep_first, keep_last (= right_crop), uniform, random: by place. attention: those the answer looks at. "
        "cosine: the least redundant. rkv: both, as KaVa does. rkv_decode: as R-KV does while decoding, but for a stored "
        "teacher's attention, which is the answer's.",
    )
    budget: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="Tokens kept per row: a count (24), or a share of the row's own (0.5). Of a chain never more than latent tokens.",
    )
    rate: float = Field(default=0.1, ge=0, le=1, description="Share of attention in the score of rkv (λ of KaVa).")

    @model_validator(mode="after")
    def _budget_is_used(self) -> Self:
        if self.method == "full" and self.budget != 1.0:
            raise problem(f"{self.budget} given, but method full keeps everything; allowed: 1.0", "budget")
        return self

    @property
    def needs_attention(self) -> bool:
        """Whether the teacher's attention must be stored."""
        return "attention" in SELECTORS.needs(self.method)


class KVLossConfig(Section):
    """Distance between the student's KV and the fused target."""

    distance: Annotated[str, Registered(DISTANCES)] = Field(
        default="smooth_l1",
        description="Distance of keys and of values, per element. relation: of the dot products between a row's tokens.",
    )
    unit: Literal["layer", "channel"] = Field(
        default="channel",
        description="What one unit of distance is: that of each channel, or the spread of a layer's keys or values as a whole (the default "
        "where channels have no fixed spread: distance relation, and trained maps on the teacher's side).",
    )
    lambda_k: float = Field(default=1.0, ge=0, description="Weight of the keys' distance.")
    lambda_v: float = Field(default=1.0, ge=0, description="Weight of the values' distance.")
    share: float | None = Field(
        default=None,
        gt=0,
        description="The KV loss is weighed anew at every step, so that the norm of its gradient on the student is this share of that of "
        "the other losses; the weights then only say what counts within it. null: by its weights. Costs two more backward passes; needs "
        "gradient_accumulation 1.",
    )
    beta: float = Field(
        default=0.0, ge=0, description="Weight of 1 − centred cosine similarity, over keys and values together."
    )
    gamma: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the KL between attention to the target's keys, in the student's space, and to the student's.",
    )
    terms: dict[Annotated[str, Registered()], Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="Loss terms of your own, as module:name, each with its weight. The name behind the colon is that of the log.",
    )
    sharpness: float | None = Field(
        default=None,
        gt=0,
        description="Distance relation only: factor of the dot products per channel; null: √width, which in wide models lets every "
        "token see just itself. 8 is what a width of 64 has.",
    )
    relation_heads: int = Field(
        default=1,
        ge=1,
        description="Distance relation only: parts into which the KV channels of student and teachers are cut, each with a relation of its "
        "own (MiniLMv2's relation heads, 48 there). Must divide every model's KV width; 1: all channels at once.",
    )
    layers: SupervisedLayers = Field(
        default="all",
        description="Student layers that are supervised: all, a third of them, or [first, last] by number.",
    )
    anneal: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the steps in which only the first third of these layers is supervised.",
    )

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset(self, handler(self), "terms", "share")

    @model_validator(mode="after")
    def _terms_differ(self) -> Self:
        if twice := duplicates([ImportPath(path).name for path in self.terms]):
            raise problem(
                f"{', '.join(twice)}: two terms of that name; rename one, the log has one line for each", "terms"
            )
        return self

    @model_validator(mode="after")
    def _relations_have_heads(self) -> Self:
        if self.relation_heads > 1 and self.distance != "relation":
            raise problem(f"{self.relation_heads} given, but distance is {self.distance}; allowed: 1", "relation_heads")
        return self


class KVConfig(Section):
    """KV of one or several teachers, as a target of the student's own (`transfer: match`) or as what it reads (`inject`)."""

    transfer: Literal["match", "inject"] = Field(
        default="match",
        description="match: a loss pulls the student's KV to the teachers', which are gone afterwards. inject: a trained fuser corrects "
        "the student's cached KV of the question by the teachers', who read every question, also of the tests; the student's weights "
        "stay as they are (with training.lora: its adapters are trained too).",
    )
    teachers: Annotated[list[Name], AfterValidator(distinct)] = Field(
        min_length=1,
        description="Ids of the teachers whose KV is fused, in the order of `fusion.weights`; [student] in student_view latent: its own "
        "KV when it reads the chain.",
    )
    align: AlignConfig = Field(default=AlignConfig(), description="How teachers are aligned to the student.")
    select: SelectConfig = Field(default=SelectConfig(), description="Which tokens are supervised.")
    fusion: FusionConfig = Field(default=FusionConfig(), description="How teachers are fused.")
    loss: KVLossConfig = Field(default=KVLossConfig(), description="Loss between student and fused teachers.")
    fuser: FuserConfig | None = Field(
        default=None, description="Transfer inject only: the module that is trained; null: its defaults."
    )
    control: Annotated[str, Registered(CONTROLS)] = Field(
        default="none",
        description="What replaces the teachers' KV to test whether its content matters; none: nothing does. zero_weight: the KV "
        "loss counts nothing. projector_only: it trains the map and not the student. random_direction: the student gets a gradient of "
        "the KV loss's norm in a random direction; it needs gradient_accumulation 1. self (transfer inject): the student's own KV. zeros: "
        "none, so that what is learnt is a constant.",
    )

    @property
    def own(self) -> bool:
        """Whether the student is its own teacher (`teachers: [student]`): the targets are its own KV of the written chain."""
        return self.teachers == [OWN_TEACHER]

    @property
    def injected(self) -> bool:
        """Whether the student reads the teachers' KV, instead of being pulled to them."""
        return self.transfer == "inject"

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written = without_unset(self, handler(self), "fuser")
        said = "transfer" in self.model_fields_set or self.injected
        return written if said else {key: value for key, value in written.items() if key != "transfer"}

    @model_validator(mode="before")
    @classmethod
    def _inject_has_fuser(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("transfer") == "inject" and given.get("fuser") is None:
            return given | {"fuser": {}}
        return given

    @model_validator(mode="before")
    @classmethod
    def _unit_of_the_target(cls, given: Any) -> Any:
        """Where nothing is said, the spread of a layer is the unit for targets whose channels have no fixed spread."""
        parts = [given.get(name, {}) if isinstance(given, dict) else None for name in ("align", "loss")]
        align, loss = (part.model_dump(exclude_unset=True) if isinstance(part, Section) else part for part in parts)
        if (
            not (isinstance(align, dict) and isinstance(loss, dict))
            or "unit" in loss
            or given.get("transfer") == "inject"
        ):
            return given
        name = align.get("map", "linear")
        shape = AlignConfig.model_construct(map=name) if isinstance(name, str) else AlignConfig()
        moving = shape.both_sides or (shape.trained and align.get("side") == "teacher")
        return given | {"loss": loss | {"unit": "layer"}} if moving or loss.get("distance") == "relation" else given

    @property
    def _moving_target(self) -> bool:
        return (self.align.trained and self.align.side == "teacher") or self.loss.distance == "relation"

    @model_validator(mode="after")
    def _fusion_fits_teachers(self) -> Self:
        check_fusion(self.fusion, len(self.teachers))
        return self

    @model_validator(mode="after")
    def _transfer_fits(self) -> Self:
        check_injection(self)
        return self

    @model_validator(mode="after")
    def _unit_fits(self) -> Self:
        if self.loss.unit == "channel" and self._moving_target:
            raise problem(
                "'channel' needs a target whose channels have a fixed spread: a map of closed form or align.side student, and not "
                "distance relation; allowed: layer",
                "loss",
                "unit",
            )
        return self

    @model_validator(mode="after")
    def _map_fits(self) -> Self:
        if self.control == "projector_only" and not self.align.trained:
            raise problem(
                f"'projector_only' needs a map that is trained: align.map {', '.join(TRAINED_MAPS.names)}", "control"
            )
        if self.fusion.objective == "injected_ce" and self.align.trained:
            allowed = ", ".join(CLOSED_FORM_MAPS.names)
            raise problem(
                f"'injected_ce' needs a frozen map into the student's space: align.map {allowed}", "fusion", "objective"
            )
        return self
