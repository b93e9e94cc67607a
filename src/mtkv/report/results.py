"""Reads what a study has left on disk into one `Results` object, the only thing figures, tables and the page look at.

In: `results/<study>/` as in the architecture's list of files. Out: tidy frames with accuracies in 0..1. Files that only some
studies have (training logs, routing, maps, cards) may be absent: `Results.absent` then names them, and the page says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mtkv.provenance.files import read_json

if TYPE_CHECKING:
    from mtkv.config.study import Study

MACRO = "macro"


@dataclass(frozen=True)
class Results:
    """Everything a report shows. `seed_scores` has arm, dataset (or "macro"), seed, accuracy, n; cards are keyed by folder."""

    name: str
    description: str
    descriptions: dict[str, str]
    arms: list[str]
    trained: list[str]
    datasets: list[str]
    seeds: list[int]
    runs: set[tuple[str, int]]
    baseline: str
    confidence: float
    cells: pd.DataFrame
    pairs: pd.DataFrame
    claims: pd.DataFrame
    seed_scores: pd.DataFrame
    training: pd.DataFrame
    routing: pd.DataFrame
    probe: pd.DataFrame | None
    cards: dict[str, dict[str, Any]]
    grade: str
    absent: list[str]

    @property
    def columns(self) -> list[str]:
        """The datasets, then the macro average."""
        return [*self.datasets, MACRO]

    def cell(self, arm: str, dataset: str) -> dict[str, Any]:
        """The row of cells.parquet for one arm and dataset; a row that is not there counts as missing."""
        return self._lookup("cells", arm, dataset) or {"status": "missing", "reason": "no row in cells.parquet"}

    def pair(self, arm: str, dataset: str) -> dict[str, Any] | None:
        """The row of pairs.parquet of `arm` against the study's baseline, if there is one."""
        return self._lookup("pairs", arm, dataset)

    def accuracy(self, arm: str, dataset: str, seed: int) -> float | None:
        """Accuracy of one run on one dataset, or None."""
        return self._by_run().get((arm, dataset, seed))

    def delta(self, arm: str, dataset: str, seed: int) -> float | None:
        """Accuracy of one run minus the baseline's run with the same seed, or None."""
        ours, theirs = self.accuracy(arm, dataset, seed), self.accuracy(self.baseline, dataset, seed)
        return None if ours is None or theirs is None else ours - theirs

    def _by_run(self) -> dict[tuple[str, str, int], float]:
        if "_runs" not in self.__dict__:
            frame = self.seed_scores
            keys = zip(frame["arm"], frame["dataset"], frame["seed"], strict=True)
            self.__dict__["_runs"] = dict(zip(keys, frame["accuracy"], strict=True))
        return self.__dict__["_runs"]

    def _lookup(self, table: str, arm: str, dataset: str) -> dict[str, Any] | None:
        if f"_{table}" not in self.__dict__:
            frame = self.cells if table == "cells" else self.pairs[self.pairs["baseline"] == self.baseline]
            rows = frame.drop_duplicates(["arm", "dataset"]).to_dict("records")
            self.__dict__[f"_{table}"] = {(row["arm"], row["dataset"]): row for row in rows}
        return self.__dict__[f"_{table}"].get((arm, dataset))


def read_results(study: "Study", root: Path) -> Results:
    """Read `root` (results/<study>). Raises FileNotFoundError when a file of `compare` is not there."""
    runs = [(arm, int(seed)) for arm, seed in study.runs()]
    absent: list[str] = []
    cards = _cards(root)
    items = pd.read_parquet(root / "compare/items.parquet", columns=["arm", "seed", "dataset", "correct"])
    probe = _probes(root)
    if not any(key.startswith("arms/") for key in cards):
        absent.append("arms/*/seed*/card.json")
    has_training = any(arm.training is not None for arm in study.arms.values())
    has_kv = any(arm.kv is not None for arm in study.arms.values())
    if has_kv and probe is None:
        absent.append("maps/*/*.probe.parquet")
    return Results(
        name=study.study,
        description=study.description or "",
        descriptions={name: arm.description or "" for name, arm in study.arms.items()},
        arms=list(study.arms),
        trained=[name for name, arm in study.arms.items() if arm.training is not None],
        datasets=list(study.datasets),
        seeds=sorted({seed for _, seed in runs}),
        runs=set(runs),
        baseline=study.comparison.baseline,
        confidence=study.comparison.confidence,
        cells=pd.read_parquet(root / "compare/cells.parquet"),
        pairs=pd.read_parquet(root / "compare/pairs.parquet"),
        claims=pd.read_parquet(root / "compare/claims.parquet"),
        seed_scores=seed_scores(items, list(study.datasets)),
        training=_run_frames(root, runs, "training.parquet", absent if has_training else []),
        routing=_run_frames(root, runs, "routing.parquet", absent if has_kv else []),
        probe=probe,
        cards=cards,
        grade=str(cards.get("compare", {}).get("result", {}).get("grade", "none")),
        absent=absent,
    )


def seed_scores(items: pd.DataFrame, datasets: list[str]) -> pd.DataFrame:
    """Accuracy and n per arm, dataset and seed, plus a "macro" row wherever a run has every dataset."""
    grouped = (
        items.groupby(["arm", "dataset", "seed"], sort=True)["correct"].agg(accuracy="mean", n="size").reset_index()
    )
    wide = grouped.pivot(index=["arm", "seed"], columns="dataset", values="accuracy").reindex(columns=datasets)
    totals = grouped.groupby(["arm", "seed"])["n"].sum()
    macro = wide.mean(axis=1, skipna=False).dropna().rename("accuracy").to_frame().join(totals).reset_index()
    return pd.concat([grouped, macro.assign(dataset=MACRO)], ignore_index=True)


def _cards(root: Path) -> dict[str, dict[str, Any]]:
    """Every card of the study, keyed by its folder (and by its file's stem when it is not plainly card.json)."""
    cards = {}
    for path in sorted(root.glob("*/**/*card.json")):
        folder = path.parent.relative_to(root).as_posix()
        if folder.startswith("report") or "/model" in folder:
            continue
        stem = path.name.removesuffix("card.json").strip(".-_")
        cards[f"{folder}/{stem}" if stem else folder] = read_json(path)
    return cards


def _probes(root: Path) -> pd.DataFrame | None:
    """The probe tables of all maps with a column `map` ("qwen2/ratio-ridge-1a2b3c"), or None."""
    paths = sorted((root / "maps").glob("*/*.probe.parquet"))
    names = [path.relative_to(root / "maps").as_posix().removesuffix(".probe.parquet") for path in paths]
    frames = [pd.read_parquet(path).assign(map=name) for path, name in zip(paths, names, strict=True)]
    return pd.concat(frames, ignore_index=True) if frames else None


def _run_frames(root: Path, runs: list[tuple[str, int]], name: str, absent: list[str]) -> pd.DataFrame:
    frames = []
    for arm, seed in runs:
        path = root / f"arms/{arm}/seed{seed}/{name}"
        if path.is_file():
            frames.append(pd.read_parquet(path).assign(arm=arm, seed=seed))
    if not frames:
        absent.append(f"arms/*/seed*/{name}")
        return pd.DataFrame({"arm": [], "seed": []})
    return pd.concat(frames, ignore_index=True)
