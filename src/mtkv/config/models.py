"""The sections `student` and `teachers`: where models come from and how the teachers' KV is stored."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mtkv.config.base import Name, Section, problem
from mtkv.config.errors import unknown

POCKET_MODELS = ("student", "qwen2", "gpt2")


class ModelConfig(Section):
    """One language model and its tokenizer."""

    source: Literal["pocket", "path"] = Field(
        default="pocket", description="pocket: a small model inside this package. path: a Hugging Face model folder."
    )
    name: str = Field(min_length=1, description="Name of the pocket model, or the path of the model folder.")
    revision: str | None = Field(default=None, description="Revision to load; null for the only or newest one.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Number format of the weights."
    )
    trust_remote_code: bool = Field(default=False, description="Whether Python code shipped with the model may run.")

    @model_validator(mode="after")
    def _pocket_model_exists(self) -> Self:
        if self.source == "pocket" and self.name not in POCKET_MODELS:
            raise problem(unknown(self.name, "a pocket model", POCKET_MODELS), "name")
        return self


class TeachersConfig(Section):
    """The teachers and the store of their KV."""

    mode: Literal["stored", "online"] = Field(
        default="stored",
        description="stored: each teacher reads the rows once, before training. online: teachers read along while the student trains.",
    )
    shards: int = Field(default=2, ge=1, description="Files (and jobs) that each teacher's store is split into.")
    dtype: Literal["float16", "bfloat16", "float32", "int8", "float8_e4m3fn"] = Field(
        default="float16", description="Number format of the stored KV; int8 has a scale for each channel."
    )
    tier: Literal["raw", "mapped"] = Field(
        default="raw",
        description="raw: the teacher's own KV, for any alignment. mapped: what training reads, in the student's space and time.",
    )
    batch_size: int = Field(default=64, ge=1, description="Rows a teacher reads at once.")
    models: dict[Name, ModelConfig] = Field(
        default={}, description="The teachers by id. In an overlay, null deletes a teacher."
    )

    @model_validator(mode="after")
    def _student_is_reserved(self) -> Self:
        if "student" in self.models:
            raise problem(
                "'student' is reserved for the model that is trained; choose another teacher id", "models", "student"
            )
        return self
