"""What a study's folder says of itself as flat facts (name → value): config, data, versions, code. Read from its cards and study.json."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from mtkv.provenance.files import read_json


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """`{"a": {"b": [1]}}` → `{"a.b[0]": 1}`; an empty mapping or list is kept as a value."""
    if isinstance(value, dict) and value:
        parts = {f"{path}.{key}" if path else str(key): part for key, part in value.items()}
    elif isinstance(value, list) and value:
        parts = {f"{path}[{i}]": part for i, part in enumerate(value)}
    else:
        return {path: value}
    return {key: leaf for name, part in parts.items() for key, leaf in flatten(part, name).items()}


def config_facts(folder: Path) -> dict[str, Any]:
    path = folder / "compare/study.json"
    return flatten(read_json(path)) if path.is_file() else {}


def read_cards(folder: Path) -> dict[str, dict[str, Any]]:
    """Every card, keyed by its path without "card.json"; the report's own is left out."""
    paths = sorted(folder.glob("*/**/*card.json"))
    named = {path.relative_to(folder).as_posix().removesuffix("card.json").strip("/.-_"): path for path in paths}
    return {
        name: read_json(path) for name, path in named.items() if not name.startswith("report") and "/model" not in name
    }


def config_digests(cards: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each job's digest of its config, for studies made before study.json was written: they hold nothing better."""
    return {f"{name} (config digest)": card.get("config_digest") for name, card in cards.items()}


def data_facts(cards: dict[str, dict[str, Any]], items: pd.DataFrame) -> dict[str, Any]:
    """What the data card says of the rows, and each dataset's number of items."""
    facts = flatten(cards.get("data", {}).get("result", {}), "data")
    counts = items.drop_duplicates(["dataset", "item"]).groupby("dataset").size()
    return facts | {f"items of {dataset}": int(count) for dataset, count in counts.items()}


def version_facts(cards: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Packages and hardware; a fact with several values among the cards has all of them."""
    return _gathered(
        {f"package {name}": version for name, version in card.get("packages", {}).items()}
        | {f"hardware {name}": value for name, value in card.get("hardware", {}).items() if name != "memory_gb"}
        for card in cards.values()
    )


def code_facts(cards: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The git revision, and the digest of the code that each stage ran."""
    return _gathered(
        {f"git {name}": value for name, value in card.get("git", {}).items()}
        | {f"code of {card.get('stage')}": card.get("code_digest")}
        for card in cards.values()
    )


def _gathered(facts: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Name → the distinct values it has among `facts`, as one text."""
    found: dict[str, set[str]] = {}
    for one in facts:
        for name, value in one.items():
            found.setdefault(name, set()).add(str(value))
    return {name: ", ".join(sorted(values)) for name, values in found.items()}
