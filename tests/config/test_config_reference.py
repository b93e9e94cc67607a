"""The documentation's page on the config has every section of a study, and of each every field as the models define it."""

import re
import runpy
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from mtkv.config.study import Study

HOOK = Path(__file__).parents[2] / "docs" / "hooks" / "config_reference.py"


def models_in(annotation: Any) -> set[type[BaseModel]]:
    """The models that an annotation names, those of their fields included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = [
            field.annotation
            for field in annotation.model_fields.values()
            if annotation not in get_args(field.annotation)
        ]
        return {annotation}.union(*map(models_in, fields))
    return set().union(*map(models_in, get_args(annotation)))


@pytest.fixture(scope="module")
def tables() -> dict[str, dict[str, list[str]]]:
    """Model → field → the row's other cells."""
    sections = re.split(r"^## .* \{ #(\w+) \}$", runpy.run_path(str(HOOK))["config_reference"](), flags=re.MULTILINE)[
        1:
    ]
    rows = re.compile(r"^\| `(\w+)` \| (.*) \|$", re.MULTILINE)
    return {
        name: {field: re.split(r" (?<!\\)\| ", rest) for field, rest in rows.findall(text)}
        for name, text in zip(sections[::2], sections[1::2], strict=True)
    }


def test_every_field_of_every_section(tables: dict[str, dict[str, list[str]]]) -> None:
    assert {name: list(table) for name, table in tables.items()} == {
        model.__name__: list(model.model_fields) for model in models_in(Study)
    }


def test_every_row_is_complete(tables: dict[str, dict[str, list[str]]]) -> None:
    """Four cells after the name; only the column of what is allowed may be empty."""
    rows = {(name, field): cells for name, table in tables.items() for field, cells in table.items()}
    assert {place: cells for place, cells in rows.items() if len(cells) != 4 or not all(cells[:2] + cells[3:])} == {}


def test_rows_say_what_the_models_say(tables: dict[str, dict[str, list[str]]]) -> None:
    assert tables["ComparisonConfig"]["confidence"] == ["number", "`0.95`", "> 0, < 1", "Coverage of the intervals."]
    assert tables["Study"]["student"][:2] == ["[ModelConfig](#ModelConfig)", '`{"name": "student"}`']
    assert tables["Study"]["teachers"][3] == Study.model_fields["teachers"].description
    assert tables["Study"]["study"][:2] == ["string", "required"]
    assert tables["TeachersConfig"]["models"][0] == "mapping to [ModelConfig](#ModelConfig)"
    assert tables["DatasetsImprovedClaim"]["kind"][2] == "`datasets_improved`"
    assert tables["Arm"]["seeds"] == [
        "list of integer or null", "`null`", "entries ≥ 1, ≥ 0, < 4294967296", "Seeds of this arm's runs; null: those of the study.",
    ]  # fmt: skip
