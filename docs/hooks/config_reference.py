"""The page config.md: every field of every section of a study, from the JSON schema of the pydantic models."""

import json
from typing import Any

from mtkv.config.study import Study

Schema = dict[str, Any]
BOUNDS = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}", "pattern": "`{}`",
    "minLength": "length ≥ {}", "maxLength": "length ≤ {}", "minItems": "entries ≥ {}", "minProperties": "entries ≥ {}",
}  # fmt: skip
HEAD = "| field | type | default | allowed | description |"


def config_reference() -> str:
    """Markdown with one heading per section, in the order of the config; its anchor is the name of the pydantic model."""
    schema = Study.model_json_schema()
    models = schema.pop("$defs") | {"Study": schema}
    _find_places("Study", "", models, places := {})
    opening = "# Config\n\nEvery field of a study, from the models that check it.\n\n"
    return opening + "\n".join(_section(name, places[name], models) for name in places)


def _find_places(name: str, path: str, models: dict[str, Schema], places: dict[str, list[str]]) -> None:
    """Write down, model by model, the paths in the YAML file where it stands ("student", "arms.<name>.kv")."""
    places.setdefault(name, []).append(path)
    for field, schema in models[name]["properties"].items():
        below = f"{path}.{field}".lstrip(".") + (".<name>" if "patternProperties" in schema else "")
        for used in _used(schema):
            if used != name:  # a model that is made of others of its kind
                _find_places(used, below, models, places)


def _section(name: str, paths: list[str], models: dict[str, Schema]) -> str:
    """Heading, sentence and table of one model."""
    model = models[name]
    kind = ", ".join(f" {schema['const']}" for schema in model["properties"].values() if "const" in schema)
    title = ", ".join(f"`{path}`" for path in paths if path) or "The study"
    lines = [f"## {title}{kind} {{ #{name} }}", "", model.get("description", ""), "", HEAD, "|---|---|---|---|---|"]
    for field, schema in model["properties"].items():
        text = schema.get("description") or models[_used(schema)[0]]["description"]
        cells = _type(schema), _default(schema, models), ", ".join(_allowed(schema)), text
        lines.append(f"| `{field}` | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _inner(schema: Schema) -> list[Schema]:
    """What a union, a list or a mapping is made of."""
    found = [*schema.get("anyOf", []), *schema.get("oneOf", []), schema.get("items")]
    return [inner for inner in [*found, *schema.get("patternProperties", {}).values()] if inner]


def _used(schema: Schema) -> list[str]:
    own = [schema["$ref"].split("/")[-1]] if "$ref" in schema else []
    return own + [name for inner in _inner(schema) for name in _used(inner)]


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        return f"[{_used(schema)[0]}](#{_used(schema)[0]})"
    inner = " or ".join(dict.fromkeys(map(_type, _inner(schema))))
    kind = {"array": "list of ", "object": "mapping to "}.get(schema.get("type", ""), "")
    return kind + inner or schema["type"]


def _allowed(schema: Schema) -> list[str]:
    values = [f"`{value}`" for value in schema.get("enum", [schema["const"]] if "const" in schema else [])]
    bounds = [text.format(schema[key]) for key, text in BOUNDS.items() if key in schema]
    return values + bounds + [text for inner in _inner(schema) for text in _allowed(inner)]


def _default(schema: Schema, models: dict[str, Schema]) -> str:
    """The default as in a YAML file; of a section, what differs from the defaults of its own fields."""
    if "default" not in schema:
        return "required"
    default, used = schema["default"], _used(schema)
    if isinstance(default, dict) and used and "patternProperties" not in schema:
        own = models[used[0]]["properties"]
        default = {key: value for key, value in default.items() if own[key].get("default", own) != value} or "its own"
    return default if default == "its own" else f"`{json.dumps(default, ensure_ascii=False)}`"
