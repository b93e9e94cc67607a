"""Reads what the stage `latents` wrote for every run with latent tokens, and compares each condition with unchanged latents.

In: `results/<study>/latents/<arm>/seed<seed>/`. Out: a `Latents` object. The question is whether *these* runs use their latents, so
a question counts with its mean over the seeds, intervals are over questions (`mtkv.stats`), differences paired by question; how far
the seeds agree is in `runs`.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.cells import cell
from mtkv.stats.items import MACRO, Answers
from mtkv.stats.paired_tests import difference

if TYPE_CHECKING:
    from mtkv.config.study import Study

TABLES = ("accuracy", "decoded", "kept")
UNCHANGED = "none"
CONDITIONS = (UNCHANGED, "zeroed", "swapped", "half", "no latents")
Side = tuple[str, str]


@dataclass(frozen=True)
class Latents:
    """What the latents of a study are worth, all in 0..1.

    `cells`: one row per arm, condition and dataset (or "macro") with mean, low, high, delta (condition minus unchanged latents),
    delta_low, delta_high and n_items; `runs`: (arm, condition, dataset, seed) → accuracy; `decoded` and `kept`: the stage's tables with
    arm and seed; `tokens`: number of latent tokens of each arm.
    """

    tokens: dict[str, int]
    cells: pd.DataFrame
    runs: dict[tuple[str, str, str, int], float]
    decoded: pd.DataFrame
    kept: pd.DataFrame

    def cell(self, arm: str, condition: str, dataset: str) -> dict[str, Any] | None:
        """One row of `cells`, None where there is no number."""
        return self._by_key.get((arm, condition, dataset))

    @cached_property
    def _by_key(self) -> dict[tuple[str, str, str], dict[Any, Any]]:
        return {(row["arm"], row["condition"], row["dataset"]): row for row in self.cells.to_dict("records")}

    @property
    def conditions(self) -> list[str]:
        """The conditions that some arm was tested under, in the order of `CONDITIONS`."""
        found = set(self.cells["condition"])
        return [name for name in CONDITIONS if name in found]


def read_latents(study: "Study", root: Path, absent: list[str]) -> Latents | None:
    """The latents of a study. None for a study without latent tokens, or without these files, which are then added to `absent`."""
    arms = study.latent_arms()
    if not arms:
        return None
    frames = {name: _frames(study, root, arms, name) for name in TABLES}
    if gone := [name for name, frame in frames.items() if frame is None]:
        absent += [f"latents/*/seed*/{name}.parquet" for name in gone]
        return None
    accuracy, decoded, kept = (frames[name] for name in TABLES)
    assert accuracy is not None
    assert decoded is not None
    assert kept is not None
    accuracy = accuracy.assign(condition=_conditions(accuracy))
    tokens = {arm: latent.tokens for arm in arms if (latent := study.arms[arm].latent) is not None}
    return Latents(tokens, _cells(study, accuracy, arms), _runs(accuracy, study.datasets), decoded, kept)


def _frames(study: "Study", root: Path, arms: list[str], name: str) -> pd.DataFrame | None:
    """The table `name` of all runs that have it, one below the other; None when none has."""
    runs = [(arm, seed) for arm in arms for seed in study.seeds_of(arm)]
    paths = [(run, root / f"latents/{run[0]}/seed{run[1]}/{name}.parquet") for run in runs]
    frames = [pd.read_parquet(path).assign(arm=arm, seed=seed) for (arm, seed), path in paths if path.is_file()]
    filled = [frame for frame in frames if len(frame)] or frames[:1]
    return pd.concat(filled, ignore_index=True) if filled else None


def _conditions(accuracy: pd.DataFrame) -> list[str]:
    """The page's name for the condition of each row; "truncated" is "half", or "no latents" where the half is none."""
    pairs = zip(accuracy["condition"], accuracy["kept"], strict=True)
    return [name if name != "truncated" else "half" if kept else "no latents" for name, kept in pairs]


def _runs(accuracy: pd.DataFrame, datasets: list[str]) -> dict[tuple[str, str, str, int], float]:
    means = accuracy.groupby(["arm", "condition", "dataset", "seed"], as_index=False)["correct"].mean()
    keys = zip(means["arm"], means["condition"], means["dataset"], means["seed"].astype(int), strict=True)
    found: dict[tuple[str, str, str, int], float] = dict(zip(keys, means["correct"], strict=True))
    for arm, condition, seed in {(a, c, s) for a, c, _, s in found}:
        parts = [found.get((arm, condition, name, seed)) for name in datasets]
        if None not in parts:
            found[arm, condition, MACRO, seed] = float(np.mean([part for part in parts if part is not None]))
    return found


def _cells(study: "Study", accuracy: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    settings = study.comparison
    sides = [(arm, condition) for arm in arms for condition in CONDITIONS]
    answers = _answers(study, accuracy, sides)
    resamples = Resamples(answers, settings.resamples, settings.seed)
    rows = [
        row
        for side in sides
        for column in answers.columns
        if (row := _row(answers, resamples, side, column, settings.confidence)) is not None
    ]
    names = ["arm", "condition", "dataset", "mean", "low", "high", "delta", "delta_low", "delta_high", "n_items"]
    return pd.DataFrame(rows, columns=names)


def _row(answers: Answers, resamples: Resamples, side: Side, column: str, confidence: float) -> dict[str, Any] | None:
    found = cell(answers, resamples, _name(side), column, confidence)
    if isinstance(found, str):
        return None
    row = {"arm": side[0], "condition": side[1], "dataset": column, "mean": found.value}
    row |= {"low": found.low, "high": found.high, "n_items": found.n_items}
    if side[1] == UNCHANGED:
        return row
    apart = difference(answers, resamples, _name(side), _name((side[0], UNCHANGED)), column, confidence)
    if isinstance(apart, str):
        return row
    of = apart.estimate
    return row | {"delta": of.value, "delta_low": of.low, "delta_high": of.high}


def _answers(study: "Study", accuracy: pd.DataFrame, sides: list[Side]) -> Answers:
    """`Answers` in which (arm, condition) stands for the arm, seeds averaged; missing where a run is absent or has other items."""
    keys = ["arm", "condition", "seed", "dataset"]
    runs: dict[Any, pd.DataFrame] = {key: part.sort_values("item") for key, part in accuracy.groupby(keys)}
    items: dict[str, list[str]] = {}
    clusters: dict[str, Any] = {}
    for (_, _, _, dataset), part in runs.items():
        if dataset not in items:
            items[dataset] = part["item"].tolist()
            clusters[dataset] = pd.factorize(part["cluster"])[0].astype(np.intp)
    seeds = {_name(side): [0] for side in sides}
    correct, reasons = {}, {}
    for side in sides:
        for dataset in study.datasets:
            parts = [runs.get((*side, seed, dataset)) for seed in study.seeds_of(side[0])]
            known = [part for part in parts if part is not None and part["item"].tolist() == items[dataset]]
            if len(known) == len(parts):
                correct[_name(side), 0, dataset] = np.mean(
                    [part["correct"].to_numpy(dtype=float) for part in known], axis=0
                )
            else:
                reasons[_name(side), 0, dataset] = "not asked"
    return Answers(accuracy, seeds, list(study.datasets), correct, reasons, clusters, study.comparison.min_clusters)


def _name(side: Side) -> str:
    return " / ".join(side)
