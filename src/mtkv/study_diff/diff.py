"""What differs between two studies: config, data, versions, code, scores and verdicts of two results folders.

In: two folders `results/<study>`, with whatever they hold of cards and of compare/. Out: `StudyDiff`, six tables that list
differences only, except `scores`, which has every arm and dataset that either study has. Scores are compared in pairs, by
the same statistics as two arms of one study, on the questions that both studies asked, never on others: `n_items` says how
many they are, `only_a` and `only_b` how many were left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mtkv.provenance.files import read_json
from mtkv.report.results import read_cards
from mtkv.study_diff.scores import score_rows, with_questions


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


COLUMNS = ["what", "a", "b"]
CLAIM_COLUMNS = ["claim", "verdict_a", "verdict_b", "delta_a", "delta_b", "threshold_a", "threshold_b"]
ABSENT = "—"


class NoComparisonError(ValueError):
    """A folder is no study, or its scores have not been compared yet; the message names it and says what to do."""


@dataclass(frozen=True)
class StudyDiff:
    """Differences of studies a and b. `config` has path, a, b; `data`, `versions` and `code` have what, a, b; accuracies are in 0..1."""

    a: str
    b: str
    config: pd.DataFrame
    data: pd.DataFrame
    versions: pd.DataFrame
    code: pd.DataFrame
    scores: pd.DataFrame
    claims: pd.DataFrame

    @property
    def same(self) -> bool:
        """Nothing differs, except perhaps the studies' names."""
        tables = [self.config[self.config["path"] != "study"], self.data, self.versions, self.code, self.claims]
        changed = (self.scores["status"] != "ok") | (self.scores["delta"] != 0)
        return all(table.empty for table in tables) and not changed.any()


def diff_studies(
    a: str | Path, b: str | Path, *, confidence: float = 0.95, resamples: int = 5000, seed: int = 0
) -> StudyDiff:
    """Compare the results folders `a` and `b`. Raises NoComparisonError where one of them has no comparison of its own."""
    folders = Path(a), Path(b)
    for folder in folders:
        _check(folder)
    cards = [read_cards(folder) for folder in folders]
    items = [pd.read_parquet(folder / "compare/items.parquet") for folder in folders]
    min_clusters = int(config_facts(folders[0]).get("comparison.min_clusters", 10))
    *paired, changed = with_questions(items[0], items[1], folders)
    scores = score_rows(paired[0], paired[1], confidence, resamples, seed, min_clusters)
    written = [config_facts(folder) for folder in folders]
    config = written if all(written) else [config_digests(own) for own in cards]
    return StudyDiff(
        a=str(folders[0]),
        b=str(folders[1]),
        config=_changes(*config).rename(columns={"what": "path"}),
        data=pd.concat([_changes(*map(data_facts, cards, items)), _other_questions(changed)]),
        versions=_changes(*map(version_facts, cards)),
        code=_changes(*map(code_facts, cards)),
        scores=scores,
        claims=_claims(*folders),
    )


def _check(folder: Path) -> None:
    """Raise NoComparisonError, which says what to do, for a folder that cannot be compared."""
    if (folder / "compare/items.parquet").is_file():
        return
    if not folder.is_dir():
        raise NoComparisonError(f"{folder}: there is no such folder")
    parts = [name for name in ("data", "teachers", "maps", "arms", "predictions", "scores") if (folder / name).is_dir()]
    if not parts:
        raise NoComparisonError(f"{folder}: not a study's results (results/<study>, with data/, scores/, compare/ …)")
    raise NoComparisonError(
        f"{folder}: this study has {', '.join(f'{name}/' for name in parts)}, but no comparison yet "
        f"(no compare/items.parquet); finish it with: snakemake --profile profiles/local --configfile … all"
    )


def _other_questions(changed: dict[str, int]) -> pd.DataFrame:
    rows = [(f"other questions in {name}", "0", str(count)) for name, count in changed.items() if count]
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def _changes(a: dict[str, Any], b: dict[str, Any]) -> pd.DataFrame:
    """Keys whose values differ, in the order of a, then b; a key that one side lacks shows as a dash."""
    keys = [key for key in a | b if a.get(key, ABSENT) != b.get(key, ABSENT)]
    rows = [(key, str(a.get(key, ABSENT)), str(b.get(key, ABSENT))) for key in keys]
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def _claims(a: Path, b: Path) -> pd.DataFrame:
    """The claims whose verdict or threshold differs, and those that only one study has."""
    paths = [folder / "compare/claims.parquet" for folder in (a, b)]
    if not all(path.is_file() for path in paths):
        return pd.DataFrame(columns=CLAIM_COLUMNS)
    sides = [pd.read_parquet(path)[["claim", "verdict", "delta", "threshold"]] for path in paths]
    merged = sides[0].merge(sides[1], on="claim", how="outer", suffixes=("_a", "_b"), validate="one_to_one", sort=False)
    same = (merged["verdict_a"] == merged["verdict_b"]) & (merged["threshold_a"] == merged["threshold_b"])
    return merged.loc[~same, CLAIM_COLUMNS].reset_index(drop=True)
