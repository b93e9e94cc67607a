"""What differs between two studies: config, data, versions, code, scores and verdicts of two results folders.

In: two folders `results/<study>`, with whatever they hold of cards and of compare/. Out: `StudyDiff`, six tables that list
differences only, except `scores`, which has every arm and dataset that either study has. Scores are compared in pairs, by
the same statistics as two arms of one study, on the questions that both studies asked, never on others: `n_items` says how
many they are, `only_a` and `only_b` how many were left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mtkv.study_diff.facts import (
    code_facts,
    config_digests,
    config_facts,
    data_facts,
    flatten,
    read_cards,
    version_facts,
)
from mtkv.study_diff.questions import with_questions
from mtkv.study_diff.scores import score_rows

__all__ = ["NoComparisonError", "StudyDiff", "diff_studies", "flatten"]
CONFIG_COLUMNS = ["path", "a", "b"]
DATA_COLUMNS = ["what", "a", "b"]
VERSION_COLUMNS = ["what", "a", "b"]
CODE_COLUMNS = ["what", "a", "b"]
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
        config=_changes(*config, columns=CONFIG_COLUMNS),
        data=pd.concat([_changes(*map(data_facts, cards, items), columns=DATA_COLUMNS), _other_questions(changed)]),
        versions=_changes(*map(version_facts, cards), columns=VERSION_COLUMNS),
        code=_changes(*map(code_facts, cards), columns=CODE_COLUMNS),
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
    return pd.DataFrame(rows, columns=DATA_COLUMNS, dtype=object)


def _changes(a: dict[str, Any], b: dict[str, Any], *, columns: list[str]) -> pd.DataFrame:
    """Keys whose values differ, in the order of a, then b; a key that one side lacks shows as a dash."""
    keys = [key for key in a | b if a.get(key, ABSENT) != b.get(key, ABSENT)]
    rows = [(key, _text(a.get(key, ABSENT)), _text(b.get(key, ABSENT))) for key in keys]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _claims(a: Path, b: Path) -> pd.DataFrame:
    """The claims whose verdict or threshold differs, and those that only one study has."""
    paths = [folder / "compare/claims.parquet" for folder in (a, b)]
    if not all(path.is_file() for path in paths):
        return pd.DataFrame(columns=CLAIM_COLUMNS)
    sides = [pd.read_parquet(path)[["claim", "verdict", "delta", "threshold"]] for path in paths]
    merged = sides[0].merge(sides[1], on="claim", how="outer", suffixes=("_a", "_b"), validate="one_to_one", sort=False)
    same = (merged["verdict_a"] == merged["verdict_b"]) & (merged["threshold_a"] == merged["threshold_b"])
    return merged.loc[~same, CLAIM_COLUMNS].reset_index(drop=True)
