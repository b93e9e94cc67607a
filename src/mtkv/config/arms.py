"""The section `arms`: one way to make a model each. These are *resolved* arms, after `mtkv.config.extends`."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mtkv.config.base import Name, Section, Seed, distinct, problem, without_unset
from mtkv.config.fusion import LogitConfig
from mtkv.config.kv import OWN_TEACHER, KVConfig
from mtkv.config.latent import LatentConfig
from mtkv.config.phases import Phase, check_phases

SHARE_TOLERANCE = 1e-6
Seeds = Annotated[list[Seed], AfterValidator(distinct), Field(min_length=1)]


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., 2021): W + (alpha / rank)·B·A with only A and B trained. What is saved is the merged model."""

    rank: int = Field(default=16, ge=1, description="Rank of the adapters.")
    alpha: float = Field(default=32, gt=0, description="The adapters' product is scaled by alpha / rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapters' input while training.")
    targets: Annotated[list[str], AfterValidator(distinct), Field(min_length=1)] | None = Field(
        default=None,
        description="Names of the layers that get adapters (q_proj, v_proj, …); null: every linear layer but the output head. "
        "Adapters on the head or the embedding of a model in which both are one matrix: the saved model has two.",
    )
    quantize: Literal["4bit"] | None = Field(
        default=None,
        description="4bit: the frozen weights in NF4 while training (QLoRA); null: as they are. Needs the extra mtkv[qlora].",
    )

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset(self, handler(self), "quantize")


class TrainingConfig(Section):
    """How an arm's student is trained; arms that are compared must agree in all that sets their compute."""

    steps: int | None = Field(
        default=None, ge=1, description="Optimiser steps. Exactly one of steps and epochs is set."
    )
    epochs: float | None = Field(default=None, gt=0, description="Passes over the training rows, instead of steps.")
    batch_size: int = Field(default=4, ge=1, description="Rows per forward pass.")
    gradient_accumulation: int = Field(default=8, ge=1, description="Forward passes per optimiser step.")
    learning_rate: float = Field(default=2.0e-5, gt=0, description="Peak learning rate of AdamW.")
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="Learning rate after warm-up."
    )
    warmup_ratio: float = Field(
        default=0.1, ge=0, le=1, description="Share of the steps in which the learning rate rises."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this norm.")
    max_length: int = Field(default=512, ge=1, description="Longest row in student tokens.")
    group_by_length: bool = Field(
        default=False,
        description="Rows of similar length in one batch: less padding, but less mixed batches where tasks differ in length.",
    )
    ce_weight: float = Field(default=1.0, ge=0, description="Weight of the cross-entropy on the text (δ of the loss).")
    logging_steps: int = Field(default=10, ge=1, description="Steps between entries of the training log.")
    eval_steps: int = Field(default=100, ge=1, description="Steps between validation losses.")
    eval_rows: int = Field(default=128, ge=1, description="Validation rows used for validation losses.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Number format of the computation; trained weights are float32 in either (bfloat16 by autocast).",
    )
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations backwards, to save memory.")
    lora: LoraConfig | None = Field(
        default=None, description="Train adapters of low rank only; null: all weights. Needs the extra mtkv[lora]."
    )

    sources: Annotated[list[Name], AfterValidator(distinct), Field(min_length=1)] | None = Field(
        default=None,
        description="Training sources whose rows are trained on and give the validation losses; null: all of them.",
    )
    styles: Annotated[list[Literal["cot", "direct"]], AfterValidator(distinct), Field(min_length=1)] | None = Field(
        default=None, description="Styles of the rows that are trained on, of those in data.styles; null: all of them."
    )
    rows: int | None = Field(
        default=None,
        ge=1,
        description="How many training rows the arm has, the first ones of its sources and styles, for studies of few labels; null: all.",
    )
    phases: list[Phase] = Field(
        default=[],
        description="Parts of the training that follow each other inside the same steps, each with factors for the losses, as KV before "
        "cross-entropy, and if it says so with rows, layers and a learning rate of its own; empty: one, with all factors 1. Validation "
        "losses have the factors 1, all layers and the targets.",
    )

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset(self, handler(self), "sources", "styles", "rows", "phases")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [name for name in ("steps", "epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            both = (
                f"steps {self.steps} and epochs {self.epochs:g} are both given"
                if given
                else "neither steps nor epochs is given"
            )
            raise problem(f"{both}; exactly one of them, the other null")
        return self

    @model_validator(mode="after")
    def _phases_fill_the_training(self) -> Self:
        total = sum(phase.share for phase in self.phases)
        if self.phases and abs(total - 1) > SHARE_TOLERANCE:
            raise problem(f"shares {[phase.share for phase in self.phases]} sum to {total:.6g}, not to 1", "phases")
        return self


class Arm(Section):
    """One way to make a model."""

    description: str = Field(default="", description="One sentence for the report.")
    extends: Name | None = Field(
        default=None, description="Arm whose entry this one starts from; what is written here overrides it."
    )
    model: Name = Field(
        default="student",
        description="Model to start from: student, or a teacher id: to evaluate that teacher, or to train it if it is merged.",
    )
    student_view: Literal["text", "latent"] = Field(
        default="text",
        description="What the student reads. text: the row itself. latent: the question, latent tokens in place of the chain, the answer.",
    )
    latent: LatentConfig | None = Field(
        default=None, description="The latent tokens of student_view latent, where null means the defaults; else null."
    )
    training: TrainingConfig | None = Field(default=None, description="How the student is trained; null: not at all.")
    kv: KVConfig | None = Field(default=None, description="KV distillation; null: none. Needs training.")
    logits: LogitConfig | None = Field(default=None, description="Logit distillation; null: none. Needs training.")
    seeds: Seeds | None = Field(default=None, description="Seeds of this arm's runs; null: those of the study.")

    @model_validator(mode="before")
    @classmethod
    def _latent_view_has_latents(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("student_view") == "latent" and given.get("latent") is None:
            return given | {"latent": {}}
        return given

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset(self, handler(self), "latent")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for field in ("kv", "logits"):
            if getattr(self, field) is not None and self.training is None:
                raise problem("given, but training is null; distillation needs training", field)
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        phases = self.training.phases if self.training else []
        if self.training:
            check_phases(phases, self.kv, self.logits, self.training.steps, self.training.rows)
        if phases and self.kv and self.kv.loss.share is not None:
            message = (
                f"{self.kv.loss.share} sets the weight of the KV loss at every step; allowed with training.phases: null"
            )
            raise problem(message, "kv", "loss", "share")
        if self.latent and (prompts := [i for i, phase in enumerate(phases) if phase.text == "prompts"]):
            message = "'prompts' has no chain that latents could stand for; allowed with student_view latent: labelled"
            raise problem(message, "training", "phases", prompts[0], "text")
        return self

    @model_validator(mode="after")
    def _balanced_steps_are_one_pass(self) -> Self:
        share = "kv.loss.share" if self.kv and self.kv.loss.share is not None else ""
        what = share or ("control random_direction" if self.kv and self.kv.control == "random_direction" else "")
        if what and self.training and self.training.gradient_accumulation > 1:
            message = (
                f"{self.training.gradient_accumulation} given, but {what} is of the gradient of one forward pass, so a step would "
                "depend on how its rows are cut; allowed with it: 1, with a larger batch_size (gradient_checkpointing saves memory)"
            )
            raise problem(message, "training", "gradient_accumulation")
        return self

    @model_validator(mode="after")
    def _injection_fits(self) -> Self:
        if self.kv is None or not self.kv.injected or self.training is None:
            return self
        lora = self.training.lora
        refused = {
            ("student_view",): self.student_view == "latent" and "'latent' given",
            ("logits",): self.logits and "given",
            ("training", "gradient_checkpointing"): self.training.gradient_checkpointing
            and "true, which keeps no cache",
            ("training", "phases"): self.training.phases and "given",
            ("training", "lora", "quantize"): lora and lora.quantize and f"{lora.quantize!r} given",
        }
        for place, given in refused.items():
            if given:
                allowed = {"student_view": "text", "gradient_checkpointing": "false", "phases": "[]"}.get(
                    place[-1], "null"
                )
                raise problem(f"{given}, but kv.transfer is inject; allowed with it: {allowed}", *place)
        return self

    @model_validator(mode="after")
    def _view_fits(self) -> Self:
        if self.latent is None:
            if self.kv and OWN_TEACHER in self.kv.teachers:
                raise problem(
                    f"{OWN_TEACHER!r}, the student's own KV of the chain, needs student_view latent", "kv", "teachers"
                )
            return self
        if self.student_view == "text":
            raise problem("given, but student_view text has no latent tokens; allowed: null", "latent")
        if self.training is None:
            raise problem(
                "'latent' needs training, but it is null; an untrained student has no latents", "student_view"
            )
        if self.logits:
            raise problem("given, but student_view is latent; allowed with it: null (latent.codi_weight, kv)", "logits")
        if self.kv:
            _check_latent_kv(self.latent, self.kv)
        return self


def _check_latent_kv(latent: LatentConfig, kv: KVConfig) -> None:
    """Raises unless KV distillation into latents has latent tokens, a selection that fits into them, and teachers that go together."""
    if latent.tokens == 0:
        raise problem(
            "0 given, but kv needs latent tokens to supervise; allowed: 1 or more, or kv null", "latent", "tokens"
        )
    if kv.select.method == "full":
        message = f"'full' keeps the whole chain, but there are {latent.tokens} latent tokens; allowed: uniform, rkv and the others"
        raise problem(message, "kv", "select", "method")
    if OWN_TEACHER not in kv.teachers:
        return
    if len(kv.teachers) > 1:
        message = (
            f"{OWN_TEACHER!r}, the student's own KV, is not mixed with other teachers; allowed: [{OWN_TEACHER}] alone"
        )
        raise problem(message, "kv", "teachers")
    if kv.align.map != "identity":
        message = f"{kv.align.map!r} is for another model's KV; allowed with teachers [{OWN_TEACHER}]: identity"
        raise problem(message, "kv", "align", "map")
