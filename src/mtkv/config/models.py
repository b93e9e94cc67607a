"""The sections `student` and `teachers`: where models come from and how the teachers' KV is stored."""

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from mtkv.config.base import Name, Section, Seed, distinct, problem, without_unset
from mtkv.config.errors import show, unknown

POCKET_MODELS = ("student", "qwen2", "gpt2", "expert_reasoning", "expert_knowledge")
DATE = "2024-07-26"  # the day that Llama 3's template falls back to
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Fields that models of one source have and must have.
OF_A_SOURCE = {"teacher": "pruned", "layers": "pruned", "arm": "run", "seed": "run"}


class RopeScaling(Section):
    """A longer context for a model with rotary positions, set when it is loaded."""

    method: Literal["ntk", "linear", "dynamic", "ntk_two_thirds"] = Field(
        description="ntk: base·s^(d/(d−2)). linear: positions divided by s. dynamic: the base that dynamic NTK "
        "reaches at s times the trained length, fixed, so that no row depends on others. "
        "ntk_two_thirds: base·s^(2/3), the original design's exponent.",
    )
    factor: float = Field(gt=1, description="s: how many times the trained length.")


class ModelConfig(Section):
    """One language model and its tokenizer."""

    source: Literal["pocket", "path", "hub", "gguf", "merged", "pruned", "run"] = Field(
        default="pocket",
        description="pocket: a small model inside this package. path: a Hugging Face model folder. hub: a model of the Hugging Face "
        "hub, fetched by `snakemake assets`. gguf: a GGUF file, de-quantised on first use. merged: the average of the weights of `merge`. "
        "pruned, of the student only: some `layers` of a `teacher`. run: what a run of this study or of another has trained.",
    )
    name: str = Field(
        min_length=1,
        description="Pocket model, path of a model folder or of a GGUF file, id on the hub (owner/name), or what a merged or pruned model "
        "is called; a run has a name if none is given.",
    )
    merge: list["ModelConfig"] = Field(
        default=[],
        description="Source merged only: the models of one architecture whose weights are averaged, each by the id of a teacher.",
        json_schema_extra={"items": {"type": "string"}},
    )
    teacher: "ModelConfig | None" = Field(
        default=None,
        description="Source pruned only: the teacher that the layers are taken from, by its id.",
        json_schema_extra={"anyOf": [{"type": "string"}, {"type": "null"}]},
    )
    layers: Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(distinct)] = Field(
        default=[], description="Source pruned only: the teacher's layers that are kept, by number from 0, ascending."
    )
    study: Name | None = Field(
        default=None,
        description="Source run only: the study whose run it is, as trained there; null: this one, which then trains it first.",
    )
    arm: Name | None = Field(default=None, description="Source run only: the arm of the run.")
    seed: Seed | None = Field(default=None, description="Source run only: the seed of the run.")
    revision: str | None = Field(
        default=None, min_length=1, description="Branch, tag or commit of a hub model; null for its main branch."
    )
    gguf_file: str | None = Field(
        default=None, min_length=1, description="GGUF file inside the folder `name`; null when `name` is the file."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="Number format of the weights. A student's that are trained are float32 while they are, and saved in this format; "
        "float16 is for models that are not trained, or by adapters only.",
    )
    trust_remote_code: bool = Field(default=False, description="Whether Python code shipped with the model may run.")
    prompt: Literal["plain", "chat"] = Field(
        default="plain",
        description="How the model reads a row. plain: the text itself. chat: the prompt as a user's turn in the chat template of the "
        "model's own tokenizer, for models that were trained on it.",
    )
    date: str = Field(
        default=DATE,
        description="The day that a chat template which prints today's date is told instead, as YYYY-MM-DD in quotes, in rows and in "
        "questions alike.",
    )
    rope_scaling: RopeScaling | None = Field(
        default=None,
        description="Longer context for texts beyond the model's own; it does not translate keys between models. null: as trained.",
    )

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset(self, handler(self), "merge", "teacher", "layers", "study", "arm", "seed")

    @model_validator(mode="before")
    @classmethod
    def _run_is_called_by_what_it_is(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("source") != "run" or "name" in given:
            return given
        parts = [given.get("study"), given.get("arm"), f"seed{given.get('seed')}"]
        return given | {"name": "/".join(str(part) for part in parts if part is not None)}

    @field_validator("date")
    @classmethod
    def _date_is_a_day(cls, value: str) -> str:
        try:
            day = date.fromisoformat(value).isoformat()
        except ValueError:
            day = None
        if day != value:
            raise problem(f"{show(value)} is no day; allowed: YYYY-MM-DD, as in {DATE!r}")
        return value

    @model_validator(mode="after")
    def _fields_fit_the_source(self) -> Self:
        if self.source == "pocket" and self.name not in POCKET_MODELS:
            raise problem(unknown(self.name, "a pocket model", POCKET_MODELS), "name")
        if self.source == "pocket" and self.prompt == "chat":
            raise problem("'chat' needs a chat template, which pocket models have not; allowed: plain", "prompt")
        if self.source == "hub" and not HUB_ID.fullmatch(self.name):
            raise problem(f"{show(self.name)} is not an id of the hub; allowed: owner/name", "name")
        if self.source == "gguf" and self.gguf_file is None and not self.name.endswith(".gguf"):
            raise problem(f"{show(self.name)} is not a .gguf file; with a folder, name the file in gguf_file", "name")
        if self.source == "merged" and len(self.merge) < 2:
            raise problem(f"{len(self.merge)} given; source merged averages two models or more", "merge")
        if self.source != "merged" and self.merge:
            raise problem(f"given, but source is {self.source}; only merged models have it", "merge")
        if self.layers != sorted(self.layers):
            raise problem(f"{self.layers} is not in the teacher's order; allowed: ascending", "layers")
        for field, source in OF_A_SOURCE.items():
            given = getattr(self, field) not in (None, [])
            if given != (self.source == source):
                lacking = f"not given, but source {source} needs it"
                raise problem(f"given, but source is {self.source}; only {source} has it" if given else lacking, field)
        for field, source in (("revision", "hub"), ("gguf_file", "gguf"), ("study", "run")):
            if getattr(self, field) is not None and self.source != source:
                raise problem(f"given, but source is {self.source}; only {source} models have one", field)
        return self

    @property
    def parts(self) -> list["ModelConfig"]:
        """The models that this one is made of: those merged, or the teacher that it is cut from."""
        return [*self.merge, *([self.teacher] if self.teacher else [])]

    @property
    def runs(self) -> list["ModelConfig"]:
        """The trained runs that this model is, or is made of."""
        return [self] if self.source == "run" else [run for part in self.parts for run in part.runs]

    @property
    def run_folder(self) -> Path:
        """Where the results of a run lie: its model, its card."""
        return Path("results", str(self.study), "arms", str(self.arm), f"seed{self.seed}")

    @property
    def chat_date(self) -> str | None:
        """The day that the chat template is told; None for a model that reads plain text."""
        return self.date if self.prompt == "chat" else None


class TeachersConfig(Section):
    """The teachers and the store of their KV."""

    mode: Literal["stored", "online"] = Field(
        default="stored",
        description="stored: each teacher reads the rows once, before training. online: teachers read along while the student trains.",
    )
    shards: int = Field(default=2, ge=1, description="Files (and jobs) that each teacher's store is split into.")
    dtype: Literal["float16", "bfloat16", "float32", "int8", "float8_e4m3fn", "int4"] = Field(
        default="float16",
        description="Number format of the stored KV; int8, float8 and int4 have a scale and an offset for each channel.",
    )
    tier: Literal["raw", "mapped", "components"] = Field(
        default="raw",
        description="raw: the teacher's own KV, for any alignment. mapped: what training reads, in the student's space and time (maps of "
        "closed form). components: what it reads, in the student's time, as principal components of the teacher's own channels (any map).",
    )
    components: int | None = Field(
        default=None,
        ge=1,
        description="Tier components only: how many per layer and kind; null: the student's KV width.",
    )
    batch_size: int = Field(default=64, ge=1, description="Rows a teacher reads at once.")
    models: dict[Name, ModelConfig] = Field(
        default={}, description="The teachers by id. In an overlay, null deletes a teacher."
    )

    @property
    def raw_dtype(self) -> str:
        """Format of the teachers' own KV: where only mapped targets stay in a coarse format, they are made from a finer one."""
        coarse = self.tier != "raw" and self.dtype in ("int8", "int4", "float8_e4m3fn")
        return "float16" if coarse else self.dtype

    @model_validator(mode="before")
    @classmethod
    def _merge_by_id(cls, given: Any) -> Any:
        """The ids in `merge` replaced by what the study says of those teachers."""
        models = given.get("models") if isinstance(given, dict) else None
        if not isinstance(models, dict):
            return given
        merged = {}
        for name, model in models.items():
            if isinstance(model, dict) and model.get("source") == "pruned":
                raise problem(
                    "'pruned' is for the student; allowed: pocket, path, hub, gguf, merged, run",
                    "models",
                    name,
                    "source",
                )
            parts = model.get("merge") if isinstance(model, dict) else None
            if isinstance(parts, list):
                for index, part in enumerate(parts):
                    if isinstance(part, str) and (part == name or part not in models):
                        known = [other for other in models if other != name]
                        raise problem(unknown(part, "another teacher's id", known), "models", name, "merge", index)
                model = model | {"merge": [models.get(part, part) if isinstance(part, str) else part for part in parts]}
            merged[name] = model
        return given | {"models": merged}

    @model_validator(mode="after")
    def _student_is_reserved(self) -> Self:
        if "student" in self.models:
            raise problem(
                "'student' is reserved for the model that is trained; choose another teacher id", "models", "student"
            )
        return self
