"""The JSON schema of a config as it is *written*, for completion and checks in editors.

It differs from the schema of a validated `Study`: nothing is required, since an overlay or `extends` may leave any part to what
it builds on, and null deletes an entry of arms, teachers.models and claims. What only `load_study` can know
(references, sums, `extends`) is not in it.
"""

from pathlib import Path
from typing import Any

from mtkv.config.models import TeachersConfig
from mtkv.config.study import Study
from mtkv.provenance.files import write_json

# Fields whose values are entries that an overlay may delete.
ENTRY_FIELDS = ((Study, "arms"), (Study, "claims"), (TeachersConfig, "models"))


def study_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a written config, complete or overlay."""
    schema = Study.model_json_schema()
    definitions = schema["$defs"]
    for model, field in ENTRY_FIELDS:
        properties = schema["properties"] if model is Study else definitions[model.__name__]["properties"]
        _allow_null_entries(properties[field])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | _partial(schema)


def write_schema(path: str | Path) -> None:
    """Write the schema as JSON."""
    write_json(path, study_schema())


def _allow_null_entries(mapping: dict[str, Any]) -> None:
    """Let null stand for an entry of a schema of a mapping, in place. An empty arms section is fine in an overlay, too."""
    mapping.pop("minProperties", None)
    (pattern,) = mapping["patternProperties"]
    mapping["patternProperties"][pattern] = {"anyOf": [mapping["patternProperties"][pattern], {"type": "null"}]}
    mapping["additionalProperties"] = False


def _partial(schema: Any) -> Any:
    """The schema with nothing required. Kinds of claims are then no longer exclusive, so `oneOf` becomes `anyOf`."""
    if isinstance(schema, list):
        return [_partial(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    names = {"oneOf": "anyOf"}
    return {
        names.get(key, key): _partial(part) for key, part in schema.items() if key not in ("required", "discriminator")
    }
