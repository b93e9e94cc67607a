"""Reads the scores of a study into one table of items, and into one matrix per arm and dataset.

In: `scores/<arm>/seed<seed>/<dataset>.json`. Out: `Answers`. Scores that contradict each other (an item twice, two arms
that answered different items) are refused with a `ScoresError`; a run that failed or is not there makes its cell, and the
macro average over the datasets, *missing* with a reason. Nothing is ever averaged over what happens to be left.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mtkv.provenance.files import read_json

MACRO = "macro"
COLUMNS = ["arm", "seed", "dataset", "item", "cluster", "correct"]
Run = tuple[str, int, str]


class ScoresError(ValueError):
    """Scores that no honest comparison can be made of. The message names the files' arm, seed and dataset."""


@dataclass(frozen=True)
class Answers:
    """Who answered what. All runs of a dataset have the same items, in the same (sorted) order.

    `items` is the long table (columns `COLUMNS`), `correct` maps (arm, seed, dataset) to shares [items], `reasons` maps the
    runs that are missing to why.
    """

    items: pd.DataFrame
    seeds: dict[str, list[int]]
    datasets: list[str]
    correct: dict[Run, NDArray[np.float64]]
    reasons: dict[Run, str]

    @property
    def columns(self) -> list[str]:
        """The datasets, then "macro"."""
        return [*self.datasets, MACRO]

    def strata(self, column: str) -> list[str]:
        """The datasets that a column averages: all of them for "macro", else itself."""
        return self.datasets if column == MACRO else [column]

    def matrix(self, arm: str, dataset: str) -> NDArray[np.float64]:
        """Correctness [seeds, items] of an arm on a dataset that is not missing."""
        return np.stack([self.correct[arm, seed, dataset] for seed in self.seeds[arm]])

    def missing(self, arm: str, column: str) -> str | None:
        """Why an arm has no number in a column, or None when it has one."""
        runs = [(arm, seed, dataset) for dataset in self.strata(column) for seed in self.seeds[arm]]
        gaps = [f"{run[2]}, seed {run[1]}: {self.reasons[run]}" for run in runs if run in self.reasons]
        return "; ".join(gaps) if gaps else None


def read_scores(
    paths: Iterable[Path], study: str, seeds: Mapping[str, Sequence[int]], datasets: Sequence[str]
) -> Answers:
    """Read and check every scores file. `seeds` are the seeds each arm is to have. Raises ScoresError."""
    expected = {(arm, seed, dataset) for arm in seeds for seed in seeds[arm] for dataset in datasets}
    frames: dict[Run, pd.DataFrame] = {}
    reasons: dict[Run, str] = {}
    for path in paths:
        scores = read_json(path)
        run = _run(scores, path)
        if scores["study"] != study or run not in expected:
            raise ScoresError(f"{path}: study {scores['study']!r}, {_label(run)} is not a run of study {study!r}")
        if run in frames or run in reasons:
            raise ScoresError(f"{path}: {_label(run)} is there twice")
        if scores["status"] == "failed":
            reasons[run] = f"failed: {scores['reason'] or 'no reason given'}"
        else:
            frames[run] = _items(scores, run)
    reasons |= dict.fromkeys(expected - frames.keys() - reasons.keys(), "no scores file")
    _check_same_items(frames)
    order = [run for run in _in_order(seeds, datasets) if run in frames]
    parts = [frames[run].assign(arm=run[0], seed=run[1], dataset=run[2])[COLUMNS] for run in order]
    table = pd.concat(parts, ignore_index=True) if parts else _empty_table()
    correct = {run: frames[run]["correct"].to_numpy() for run in order}
    return Answers(table, {arm: sorted(own) for arm, own in seeds.items()}, list(datasets), correct, reasons)


def _run(scores: Any, path: Path) -> Run:
    """The run that a scores file is of. Raises ScoresError when the file is not one, or has an unknown status."""
    needed = {"study", "arm", "seed", "dataset", "status", "reason", "n", "items"}
    if absent := needed - (scores.keys() if isinstance(scores, dict) else set()):
        raise ScoresError(f"{path}: not a scores file: {', '.join(sorted(absent))} missing")
    if scores["status"] not in ("ok", "failed"):
        raise ScoresError(f"{path}: status {scores['status']!r} is not one of ok, failed")
    return scores["arm"], scores["seed"], scores["dataset"]


def _items(scores: dict[str, Any], run: Run) -> pd.DataFrame:
    """The checked items of one run, sorted by id."""
    lists = scores["items"]
    lengths = {len(lists[key]) for key in ("id", "cluster", "correct")}
    if lengths != {scores["n"]} or not scores["n"]:
        raise ScoresError(f"{_label(run)}: n is {scores['n']}, but the lists of items have {sorted(lengths)} entries")
    frame = pd.DataFrame({"item": lists["id"], "cluster": lists["cluster"], "correct": lists["correct"]})
    frame = frame.astype({"item": str, "cluster": str, "correct": float})
    twice = frame["item"][frame["item"].duplicated()].unique()
    if len(twice):
        raise ScoresError(f"{_label(run)}: {len(twice)} items are there twice: {_some(twice)}")
    outside = frame[~frame["correct"].between(0.0, 1.0)]
    if len(outside):
        raise ScoresError(f"{_label(run)}: correct must lie in 0..1; it does not for {_some(outside['item'])}")
    return frame.sort_values("item", ignore_index=True)


def _check_same_items(frames: Mapping[Run, pd.DataFrame]) -> None:
    """Every run of a dataset must have the same items in the same clusters. Raises ScoresError."""
    first: dict[str, Run] = {}
    for run in sorted(frames):
        other = first.setdefault(run[2], run)
        ours, theirs = (set(frames[one]["item"]) for one in (run, other))
        if ours != theirs:
            raise ScoresError(
                f"{_label(run)} and {_label(other)} have different items: {len(ours - theirs)} only in the first "
                f"({_some(ours - theirs)}), {len(theirs - ours)} only in the second ({_some(theirs - ours)})"
            )
        moved = frames[run]["item"][frames[run]["cluster"] != frames[other]["cluster"]]
        if len(moved):
            raise ScoresError(f"{_label(run)} and {_label(other)} disagree on the cluster of {_some(moved)}")


def _in_order(seeds: Mapping[str, Sequence[int]], datasets: Sequence[str]) -> list[Run]:
    return [(arm, seed, dataset) for arm in seeds for seed in sorted(seeds[arm]) for dataset in datasets]


def _empty_table() -> pd.DataFrame:
    kinds = {"seed": int, "correct": float}
    return pd.DataFrame({name: pd.Series(dtype=kinds.get(name, str)) for name in COLUMNS})


def _label(run: Run) -> str:
    return f"arm {run[0]}, seed {run[1]}, dataset {run[2]}"


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (", …" if len(listed) > 3 else "") if listed else "none"
