"""What every section of the config shares: strict, frozen models that refuse unknown keys, and names that are safe in paths."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic_core import PydanticCustomError

# Names become folders and Snakemake wildcards.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=80)]


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
