"""What differs between two studies: config, data, versions, scores and verdicts of two results folders.

In: two folders `results/<study>`, with whatever they hold of cards and of compare/. Out: `StudyDiff`, five tables that list
differences only, but for `scores`, which has every arm and dataset that either study has. Scores are compared in pairs, by
the same statistics as two arms of one study, on the items that both studies asked, never on others: `n_items` says how many
they are, `only_a` and `only_b` how many were left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mtkv.provenance.files import read_json
from mtkv.stats.diff_scores import score_rows

CONFIG_COLUMNS = ["path", "a", "b"]
DATA_COLUMNS = ["what", "a", "b"]
VERSION_COLUMNS = ["what", "a", "b"]
CLAIM_COLUMNS = ["claim", "verdict_a", "verdict_b", "delta_a", "delta_b", "threshold_a", "threshold_b"]
ABSENT = "—"


@dataclass(frozen=True)
class StudyDiff:
    """Differences of study a and study b. `config`, `data` and `versions` have what, a, b; accuracies are in 0..1."""

    a: str
    b: str
    config: pd.DataFrame
    data: pd.DataFrame
    versions: pd.DataFrame
    scores: pd.DataFrame
    claims: pd.DataFrame

    @property
    def same(self) -> bool:
        """Nothing differs but, perhaps, the studies' names."""
        tables = [self.config[self.config["path"] != "study"], self.data, self.versions, self.claims]
        changed = (self.scores["status"] != "ok") | (self.scores["delta"] != 0)
        return all(table.empty for table in tables) and not changed.any()


def diff_studies(
    a: str | Path, b: str | Path, *, confidence: float = 0.95, resamples: int = 5000, seed: int = 0
) -> StudyDiff:
    """Compare the results folders `a` and `b`. Raises FileNotFoundError where a compare/items.parquet is not there."""
    folders = Path(a), Path(b)
    cards = [_cards(folder) for folder in folders]
    items = [pd.read_parquet(folder / "compare/items.parquet") for folder in folders]
    min_clusters = int(_config(folders[0]).get("comparison.min_clusters", 10))
    scores = score_rows(items[0], items[1], confidence, resamples, seed, min_clusters)
    written = [_config(folder) for folder in folders]
    config = written if all(written) else [_digests(own) for own in cards]
    return StudyDiff(
        a=str(folders[0]),
        b=str(folders[1]),
        config=_changes(*config, columns=CONFIG_COLUMNS),
        data=_changes(*map(_data, cards, items), columns=DATA_COLUMNS),
        versions=_changes(*map(_versions, cards), columns=VERSION_COLUMNS),
        scores=scores,
        claims=_claims(*folders),
    )


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """`{"a": {"b": [1]}}` → `{"a.b[0]": 1}`; an empty mapping or list is a value itself."""
    if isinstance(value, dict) and value:
        parts = {f"{path}.{key}" if path else str(key): part for key, part in value.items()}
    elif isinstance(value, list) and value:
        parts = {f"{path}[{i}]": part for i, part in enumerate(value)}
    else:
        return {path: value}
    return {key: leaf for name, part in parts.items() for key, leaf in flatten(part, name).items()}


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "compare/study.json"
    return flatten(read_json(path)) if path.is_file() else {}


def _cards(folder: Path) -> dict[str, dict[str, Any]]:
    """Every card, keyed by its path without "card.json"; the report's own is left out."""
    paths = sorted(folder.glob("*/**/*card.json"))
    named = {path.relative_to(folder).as_posix().removesuffix("card.json").strip("/.-_"): path for path in paths}
    return {
        name: read_json(path) for name, path in named.items() if not name.startswith("report") and "/model" not in name
    }


def _digests(cards: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each job's digest of its config: all that studies of before study.json tell."""
    return {f"{name} (config digest)": card.get("config_digest") for name, card in cards.items()}


def _data(cards: dict[str, dict[str, Any]], items: pd.DataFrame) -> dict[str, Any]:
    """What the data card says of the rows, and each dataset's number of items."""
    facts = flatten(cards.get("data", {}).get("result", {}), "data")
    counts = items.drop_duplicates(["dataset", "item"]).groupby("dataset").size()
    return facts | {f"items of {dataset}": int(count) for dataset, count in counts.items()}


def _versions(cards: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Packages, revisions and hardware, all that any card has, and the digest of each stage's code."""
    found: dict[str, set[str]] = {}
    for card in cards.values():
        facts = {f"package {name}": version for name, version in card.get("packages", {}).items()}
        facts |= {f"hardware {name}": value for name, value in card.get("hardware", {}).items() if name != "memory_gb"}
        facts |= {f"git {name}": value for name, value in card.get("git", {}).items()}
        facts[f"code of {card.get('stage')}"] = card.get("code_digest")
        for name, value in facts.items():
            found.setdefault(name, set()).add(str(value))
    return {name: ", ".join(sorted(values)) for name, values in found.items()}


def _changes(a: dict[str, Any], b: dict[str, Any], *, columns: list[str]) -> pd.DataFrame:
    """Keys whose values differ, in the order of a, then b; a key that one side lacks shows as a dash."""
    keys = [key for key in a | b if a.get(key, ABSENT) != b.get(key, ABSENT)]
    rows = [(key, _text(a.get(key, ABSENT)), _text(b.get(key, ABSENT))) for key in keys]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _claims(a: Path, b: Path) -> pd.DataFrame:
    """The claims whose verdict or threshold differs, and those that one study lacks."""
    paths = [folder / "compare/claims.parquet" for folder in (a, b)]
    if not all(path.is_file() for path in paths):
        return pd.DataFrame(columns=CLAIM_COLUMNS)
    sides = [pd.read_parquet(path)[["claim", "verdict", "delta", "threshold"]] for path in paths]
    merged = sides[0].merge(sides[1], on="claim", how="outer", suffixes=("_a", "_b"), validate="one_to_one", sort=False)
    same = (merged["verdict_a"] == merged["verdict_b"]) & (merged["threshold_a"] == merged["threshold_b"])
    return merged.loc[~same, CLAIM_COLUMNS].reset_index(drop=True)
