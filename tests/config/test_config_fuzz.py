"""Random damage to the valid configs either validates or ends in a ConfigError with a readable message, and nothing else."""

import copy
import datetime
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtkv.config.errors import ConfigError
from mtkv.config.overlay import merged
from mtkv.config.study import Study, load_study, read_study

CONFIG = Path(__file__).parents[2] / "config"
TEXTS = {name: (CONFIG / name).read_text(encoding="utf-8") for name in ("config.yaml", "studies/pocket-kv-only.yaml")}
BASE, OVER = (yaml.safe_load(text) for text in TEXTS.values())
CONFIGS = [BASE, merged(BASE, OVER)]

WORDS = """arms raw sft fixed kv teachers qwen2 gpt2 models student training steps epochs fusion weights extends kind seeds
strategy learnable path pocket name macro none null [key] pocket_gsm8k difference a.b ../x"""
words = st.sampled_from(WORDS.split()) | st.text(max_size=4)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**30, 10**400, -(2**63), 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf]),
    st.sampled_from([datetime.date(2026, 1, 1), b"bytes", {1, 2}, (1, 2), object, "\ud800", "", "x" * 5000, "2e-5"]),
    words,
)
garbage = st.recursive(
    scalars,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(words, below, max_size=3),
    max_leaves=5,
)


def nodes(value: Any, found: list[Any] | None = None) -> list[Any]:
    """Every non-empty mapping and list of the tree, each once, since an edit may have made it contain itself."""
    found = [] if found is None else found
    if any(value is other for other in found):
        return found
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if len(children):
        found.append(value)
    for child in children:
        nodes(child, found)
    return found


def swap_type(value: Any) -> Any:
    swaps = {str: lambda v: [v], int: str, float: str, bool: int, list: lambda v: dict(enumerate(v)), dict: list}
    return swaps.get(type(value), lambda _: "null")(value)


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A valid config after one to four random edits."""
    config = copy.deepcopy(draw(st.sampled_from(CONFIGS)))
    for _ in range(draw(st.integers(1, 4))):
        if places := nodes(config):
            damage(draw, config, places[draw(st.integers(0, len(places) - 1))])
    return config


def damage(draw: st.DrawFn, config: dict[str, Any], place: Any) -> None:
    """One edit of one mapping or list of the config."""
    spot = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
    replacements: dict[str, Callable[[], Any]] = {
        "replace": lambda: draw(garbage),
        "swap": lambda: swap_type(place[spot]),
        "nest": lambda: {draw(words): place[spot]},
        "copy": lambda: copy.deepcopy(draw(st.sampled_from(nodes(config)))),
        "cycle": lambda: draw(st.sampled_from([config, place, 0, None])),
    }
    edit = draw(st.sampled_from(["delete", "insert", "rename", *replacements]))
    if edit in replacements:
        place[spot] = replacements[edit]()
    elif edit == "delete":
        del place[spot]
    elif isinstance(place, list):
        place.insert(spot, draw(garbage))
    elif edit == "insert":
        place[draw(words)] = draw(garbage)
    else:
        place[draw(words | st.integers(0, 1) | st.booleans())] = place.pop(spot)


def outcome(read: Callable[[], Study]) -> Study | ConfigError:
    try:
        return read()
    except ConfigError as error:
        return error


def check_message(error: ConfigError) -> None:
    message = str(error)
    message.encode()  # can be printed anywhere
    assert "Traceback" not in message
    assert len(error.problems) == len(message.splitlines()) >= 1
    assert all(problem.message.strip() and len(str(problem)) < 2500 for problem in error.problems)


def test_damaged_configs() -> None:
    outcomes: Counter[type] = Counter()

    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(damaged())
    def check(config: dict[str, Any]) -> None:
        result = outcome(lambda: load_study(config))
        outcomes[type(result)] += 1
        if isinstance(result, ConfigError):
            check_message(result)
        else:
            assert load_study(result.model_dump(mode="json")) == result

    check()
    assert outcomes[ConfigError] >= 250, "the damage is nearly always harmless"
    assert outcomes[Study] >= 3, "the damage is always fatal"


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.text(max_size=2)), min_size=1, max_size=3))
def test_damaged_yaml(tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int, str]]) -> None:
    """Characters removed from and inserted into the file itself."""
    text = TEXTS["config.yaml"]
    text = text[: text.index("\nclaims:")]
    for place, removed, inserted in edits:
        place %= len(text)
        text = text[:place] + inserted + text[place + removed :]
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    result = outcome(lambda: read_study(path))
    if isinstance(result, ConfigError):
        check_message(result)
