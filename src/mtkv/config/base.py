"""What every section of the config shares: strict, frozen models that refuse unknown keys, and names that are safe in paths."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, StringConstraints
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from mtkv.config.errors import not_one_of, show
from mtkv.registry import IMPORT_PATH, ImportPath, Registry, trouble

# Names become folders and Snakemake wildcards.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=80)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """Base of all config models. Strict: "3" and true are not numbers; 3 is accepted where a float is meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def problem(message: str, *at: str | int) -> PydanticCustomError:
    """An error to raise from a validator; `at` is the path of the faulty field below the model being validated ("kv", "teachers")."""
    return PydanticCustomError("mtkv", "{message}", {"message": message, "at": at})


def duplicates(values: list[Any]) -> list[Any]:
    """The values that occur more than once, each once, in order of first occurrence."""
    return [value for index, value in enumerate(values) if value not in values[:index] and values.count(value) > 1]


def distinct(values: list[Any] | None) -> list[Any] | None:
    """Pydantic validator: raises for a list with an entry that occurs twice, else returns it."""
    if values is not None and (twice := duplicates(values)):
        raise problem(f"{', '.join(map(repr, twice))} given more than once; each entry once")
    return values


class Registered:
    """Annotation of a text that is an entry of one of `registries` or one's own `module:name`; without registries only the latter.

    Neither is imported to check it, so that a config is validated without torch. A `module:name` becomes an `ImportPath`. With `other`, a
    pattern, instead of a `module:name` whatever fits it is allowed, for the model's own validator to judge.
    """

    def __init__(self, *registries: Registry, other: str | None = None) -> None:
        self.registries, self.other = registries, other

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        own = {"pattern": self.other or f"^{IMPORT_PATH}$", "type": "string"}
        return {"anyOf": [{"enum": self._names, "type": "string"}, own]} if self.registries else own

    @property
    def _names(self) -> list[str]:
        return [name for registry in self.registries for name in registry.names]

    def _checked(self, value: str) -> str:
        if value in self._names or (self.other and re.search(self.other, value)):
            return value
        if not re.fullmatch(IMPORT_PATH, value):
            if not self.registries:
                raise problem(f"{show(value)} is no module:name, as in my_module:my_function")
            raise problem(f"{not_one_of(value, self._names)}; or module:name of your own")
        if reason := trouble(value):
            raise problem(f"{show(value)}: {reason}")
        return ImportPath(value)


def without_unset(section: BaseModel, written: dict[str, Any], *fields: str) -> dict[str, Any]:
    """The serialised section `written` without those of `fields` that are null or empty and were not in the config.

    So what was written before a field existed keeps its digest. A null that the user wrote stays: it may override a parent's value.
    """
    said = section.model_fields_set
    return {
        key: value for key, value in written.items() if key not in fields or value not in (None, {}, []) or key in said
    }
