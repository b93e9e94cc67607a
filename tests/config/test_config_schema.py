"""config/schema.json is what the models say, accepts what is written, and refuses what an editor should underline."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mtkv.config.schema import study_schema, write_schema
from mtkv.config.study import Study

WRITTEN = ["config.yaml", "studies/pocket-kv-only.yaml"]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(study_schema())
    return jsonschema.Draft202012Validator(study_schema())


def test_schema_file_is_current(config_folder: Path, tmp_path: Path) -> None:
    """After a change of the models: `mtkv schema`, or write_schema("config/schema.json")."""
    write_schema(tmp_path / "schema.json")
    assert (config_folder / "schema.json").read_text(encoding="utf-8") == (tmp_path / "schema.json").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("name", WRITTEN)
def test_written_configs_fit(validator: jsonschema.Draft202012Validator, config_folder: Path, name: str) -> None:
    validator.validate(yaml.safe_load((config_folder / name).read_text(encoding="utf-8")))


FITTING: dict[str, dict[str, Any]] = {
    "nothing": {},
    "deleted entries": {"arms": {"raw": None}, "claims": {"x": None}, "teachers": {"models": {"gpt2": None}}},
    "partial arm": {"arms": {"a": {"extends": "fixed", "kv": {"loss": {"lambda_v": 0}}}}},
    "partial claim": {"claims": {"gsm8k_75": {"threshold": 80}}},
    "kv switched off": {"arms": {"a": {"extends": "fixed", "kv": None}}},
}
NOT_FITTING: dict[str, dict[str, Any]] = {
    "unknown key": {"armes": {}},
    "unknown key in arm": {"arms": {"a": {"extend": "b"}}},
    "enum": {"arms": {"a": {"kv": {"fusion": {"strategy": "learnabel"}}}}},
    "unknown view": {"arms": {"a": {"student_view": "latnet"}}},
    "type": {"arms": {"a": {"training": {"steps": "300"}}}},
    "range": {"comparison": {"confidence": 1.0}},
    "name": {"arms": {"a b": {}}},
    "deleted section": {"data": None},
    "key of no claim": {"claims": {"x": {"treshold": 3}}},
    "key of another claim": {"claims": {"x": {"kind": "accuracy", "twin": "a"}}},
}


@pytest.mark.parametrize("config", FITTING.values(), ids=FITTING)
def test_partial_configs_fit(validator: jsonschema.Draft202012Validator, config: dict[str, Any]) -> None:
    validator.validate(copy.deepcopy(config))


@pytest.mark.parametrize("config", NOT_FITTING.values(), ids=NOT_FITTING)
def test_mistakes_do_not_fit(validator: jsonschema.Draft202012Validator, config: dict[str, Any]) -> None:
    assert not validator.is_valid(config)


def test_every_field_is_described() -> None:
    """An editor shows the description; pydantic leaves it out of a reference only when it repeats the model's own."""
    schema = Study.model_json_schema()
    for name, model in {"Study": schema, **schema["$defs"]}.items():
        for field, entry in model["properties"].items():
            target = schema["$defs"].get(entry.get("$ref", "").rpartition("/")[2], {})
            assert (entry.get("description") or target.get("description", "")).strip(), f"{name}.{field}"
        assert model["additionalProperties"] is False, name
    assert len(json.dumps(schema)) > 1000
    assert len(schema["$defs"]) >= 15
