"""The default study's raw mapping, fresh for each test."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIG = Path(__file__).parents[2] / "config"


@pytest.fixture
def config_folder() -> Path:
    return CONFIG


@pytest.fixture
def raw() -> dict[str, Any]:
    """config.yaml as PyYAML reads it, a copy in which no aliases share an object."""
    return json.loads(_default_config())


@cache
def _default_config() -> str:
    return json.dumps(yaml.safe_load((CONFIG / "config.yaml").read_text(encoding="utf-8")))
