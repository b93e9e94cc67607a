"""Reads the scores of a study into `Answers`: one matrix per arm and dataset, from which every number of a comparison is computed.

In: `scores/<arm>/seed<seed>/<dataset>.json`. A file that contradicts itself or the study (an item twice, a run the study does
not have) is refused with a `ScoresError`. A run that failed, that is not there, or that answered other items than the rest makes its
cell, and the macro average over the datasets, *missing* with a reason. Nothing is ever averaged over what happens to be left.

Items of one cluster (a passage, a template) are alike. A dataset of `min_clusters` clusters or more is treated as a sample of
clusters: its errors are those of whole clusters. A dataset of fewer is taken as made of just these, and its intervals speak
of new questions of the same kinds: three clusters have no distribution to learn (no sign-flip test of three can go below
p = 0.25). Both numbers, and the design effect, are in cells.parquet. A question asked twice is no new question, and a model
answers it alike: without enough clusters, the repeats of one question are a cluster, however few such there are.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mtkv.provenance.files import read_json
from mtkv.stats.translatable import Sentence, listed, tell

MACRO = "macro"
MIN_CLUSTERS = 10
Run = tuple[str, int, str]
Codes = NDArray[np.intp]


@dataclass(frozen=True)
class Stack:
    """Arms with the same seeds on one dataset: row of each arm, `correct` [arms, seeds, items], its mean `shares` [arms, items]."""

    rows: dict[str, int]
    correct: NDArray[np.float64]
    shares: NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """Who answered what. All runs of a dataset have the same items, in the same (sorted) order.

    `items` is the long table of items.parquet; `correct` maps (arm, seed, dataset) to shares [items]; `reasons` maps the missing
    runs to why; `clusters` and `questions` map a dataset to the number of each item's cluster and question, [items].
    """

    items: pd.DataFrame
    seeds: dict[str, list[int]]
    datasets: list[str]
    correct: dict[Run, NDArray[np.float64]]
    reasons: dict[Run, str]
    clusters: dict[str, Codes] = field(default_factory=dict)
    min_clusters: int = MIN_CLUSTERS
    questions: dict[str, Codes] = field(default_factory=dict)
    _matrices: dict[tuple[tuple[int, ...], str], Stack] = field(default_factory=dict, repr=False, compare=False)

    @property
    def columns(self) -> list[str]:
        """The datasets, then "macro"."""
        return [*self.datasets, MACRO]

    def strata(self, column: str) -> list[str]:
        """The datasets that a column averages: all of them for "macro", else itself."""
        return self.datasets if column == MACRO else [column]

    def matrix(self, arm: str, dataset: str) -> NDArray[np.float64]:
        """Correctness [seeds, items] of an arm on a dataset that is not missing."""
        stack = self._stack(arm, dataset)
        return stack.correct[stack.rows[arm]]

    def matrices(self, arms: Sequence[str], dataset: str) -> NDArray[np.float64]:
        """Correctness [arms, seeds, items] of `arms` that have the same seeds."""
        stack = self._stack(arms[0], dataset)
        return stack.correct[[stack.rows[arm] for arm in arms]]

    def shares(self, arms: Sequence[str], dataset: str) -> NDArray[np.float64]:
        """The share of seeds that answered each item right, [arms, items]."""
        stack = self._stack(arms[0], dataset)
        return stack.shares[[stack.rows[arm] for arm in arms]]

    def _stack(self, arm: str, dataset: str) -> Stack:
        """The arms with the same seeds as `arm` and all answers to the dataset, as one array; made once and kept."""
        key = tuple(self.seeds[arm]), dataset
        if key not in self._matrices:
            alike = [one for one, own in self.seeds.items() if tuple(own) == key[0]]
            runs = {one: [(one, seed, dataset) for seed in key[0]] for one in alike}
            there = [one for one, own in runs.items() if all(run in self.correct for run in own)]
            correct = np.stack([np.stack([self.correct[run] for run in runs[one]]) for one in there])
            self._matrices[key] = Stack({one: row for row, one in enumerate(there)}, correct, correct.mean(axis=1))
        return self._matrices[key]

    def missing(self, arm: str, column: str) -> str | None:
        """Why an arm has no number in a column, or None when it has one."""
        runs = [(arm, seed, dataset) for dataset in self.strata(column) for seed in self.seeds[arm]]
        known = [(run, self.reasons[run]) for run in runs if run in self.reasons]
        gaps = [tell("{dataset}, seed {seed}: {reason}", dataset=run[2], seed=run[1], reason=why) for run, why in known]
        return listed(gaps) if gaps else None

    def n_clusters(self, dataset: str) -> int:
        """Number of clusters of a dataset's items; 0 when they are not known, or every item is its own."""
        return _number(self.clusters.get(dataset))

    def groups(self, dataset: str) -> Codes | None:
        """The clusters [items] that errors must respect, or None when items count as independent of each other."""
        if self.n_clusters(dataset) >= max(self.min_clusters, 2):
            return self.clusters[dataset]
        return self.questions[dataset] if _number(self.questions.get(dataset)) else None

    def n_groups(self, dataset: str) -> int:
        """Number of `groups`; 0 where items count as independent."""
        groups = self.groups(dataset)
        return 0 if groups is None else int(groups.max()) + 1


def codes_of(names: Iterable[str]) -> Codes:
    """Numbers from 0 in place of names, in their sorted order."""
    return np.asarray(np.unique([*names], return_inverse=True)[1])


def _number(codes: Codes | None) -> int:
    """Number of groups in `codes`; 0 when they are not known, or every item is a group of its own."""
    number = 0 if codes is None or codes.size == 0 else int(codes.max()) + 1
    return number if codes is not None and number < codes.size else 0


COLUMNS = ["arm", "seed", "dataset", "item", "cluster", "question", "correct"]
__all__ = ["COLUMNS", "MACRO", "Answers", "ScoresError", "read_scores"]


@dataclass(frozen=True)
class ScoreSheet:
    """The answers of one run to one dataset, sorted by item; items with equal `questions` repeat the same question."""

    items: list[str]
    clusters: list[str]
    questions: list[str]
    correct: NDArray[np.float64]


class ScoresError(ValueError):
    """Scores that cannot be compared honestly. The message names the files' arm, seed and dataset."""


def read_scores(
    paths: Iterable[Path],
    study: str,
    seeds: Mapping[str, Sequence[int]],
    datasets: Sequence[str],
    min_clusters: int = MIN_CLUSTERS,
) -> Answers:
    """Read and check every scores file. `seeds` are the seeds each arm is to have. Raises ScoresError."""
    expected = {(arm, seed, dataset) for arm in seeds for seed in seeds[arm] for dataset in datasets}
    sheets: dict[Run, ScoreSheet] = {}
    reasons: dict[Run, str] = {}
    for path in paths:
        scores = read_json(path)
        run = _run(scores, path)
        if scores["study"] != study or run not in expected:
            raise ScoresError(f"{path}: study {scores['study']!r}, {_label(run)} is not a run of study {study!r}")
        if run in sheets or run in reasons:
            raise ScoresError(f"{path}: {_label(run)} is there twice")
        if scores["status"] == "failed":
            reasons[run] = tell("failed: {reason}", reason=scores["reason"] or tell("no reason given"))
        else:
            sheets[run] = _sheet(scores, run)
    reasons |= dict.fromkeys(expected - sheets.keys() - reasons.keys(), tell("no scores file"))
    reasons |= (others := _with_other_items(sheets))
    _check_clusters({run: sheet for run, sheet in sheets.items() if run not in others})
    order = [run for run in _in_order(seeds, datasets) if run in sheets and run not in others]
    return Answers(
        items=_table([(run, sheets[run]) for run in order]),
        seeds={arm: sorted(own) for arm, own in seeds.items()},
        datasets=list(datasets),
        correct={run: sheets[run].correct for run in order},
        reasons=reasons,
        clusters={run[2]: codes_of(sheets[run].clusters) for run in {run[2]: run for run in order}.values()},
        questions={run[2]: codes_of(sheets[run].questions) for run in {run[2]: run for run in order}.values()},
        min_clusters=min_clusters,
    )


def _run(scores: Any, path: Path) -> Run:
    """The (arm, seed, dataset) of a scores file. Raises ScoresError when it is not one, or has an unknown status."""
    needed = {"study", "arm", "seed", "dataset", "status", "reason", "n", "items"}
    if absent := needed - (scores.keys() if isinstance(scores, dict) else set()):
        raise ScoresError(f"{path}: not a scores file: {', '.join(sorted(absent))} missing")
    if scores["status"] not in ("ok", "failed"):
        raise ScoresError(f"{path}: status {scores['status']!r} is not one of ok, failed")
    return scores["arm"], scores["seed"], scores["dataset"]


def _sheet(scores: dict[str, Any], run: Run) -> ScoreSheet:
    """The checked items of one run, sorted by id."""
    lists = scores["items"]
    named = lists.get("same_as", lists["id"])
    lengths = {len(one) for one in (*(lists[key] for key in ("id", "cluster", "correct")), named)}
    if lengths != {scores["n"]} or not scores["n"]:
        raise ScoresError(f"{_label(run)}: n is {scores['n']}, but the lists of items have {sorted(lengths)} entries")
    ids = [str(item) for item in lists["id"]]
    twice = [item for item, count in Counter(ids).items() if count > 1]
    if twice:
        raise ScoresError(f"{_label(run)}: {len(twice)} items are there twice: {_some(twice)}")
    correct = np.array(lists["correct"], dtype=float)
    outside = np.flatnonzero(~((correct >= 0) & (correct <= 1)))
    if outside.size:
        raise ScoresError(
            f"{_label(run)}: correct must lie in 0..1; it does not for {_some(ids[place] for place in outside)}"
        )
    order = sorted(range(len(ids)), key=ids.__getitem__)
    clusters, questions = ([str(names[place]) for place in order] for names in (lists["cluster"], named))
    return ScoreSheet([ids[place] for place in order], clusters, questions, correct[order])


def _with_other_items(sheets: Mapping[Run, ScoreSheet]) -> dict[Run, str]:
    """Run → why, for runs whose items are not those of most runs of their dataset; all of its runs where no set of items is commonest."""
    sets = {run: frozenset(sheet.items) for run, sheet in sheets.items()}
    found: dict[Run, str] = {}
    for dataset in {run[2] for run in sheets}:
        runs = sorted(run for run in sheets if run[2] == dataset)
        ranked = Counter(sets[run] for run in runs).most_common(2)
        if len(ranked) == 1:
            continue
        common = ranked[0][0]
        leads = ranked[0][1] > ranked[1][1]
        every = frozenset.union(*(sets[run] for run in runs))
        for run in runs:
            lacks, more = (common if leads else every) - sets[run], sets[run] - common
            if sets[run] != common or not leads:
                difference = _difference(lacks, more if leads else set())
                found[run] = tell("different items: {difference}", difference=difference)
    return found


def _difference(lacks: Collection[str], more: Collection[str]) -> Sentence:
    """How the items of a run differ from those it should have."""
    facts = {"few": len(lacks), "gone": _some(lacks), "many": len(more), "extra": _some(more)}
    if lacks and more:
        return tell("lacks {few} ({gone}), has {many} that others lack ({extra})", **facts)
    if lacks:
        return tell("lacks {few} ({gone})", **facts)
    if more:
        return tell("has {many} that others lack ({extra})", **facts)
    return tell("the other runs of this dataset lack some of its items")


def _check_clusters(sheets: Mapping[Run, ScoreSheet]) -> None:
    """Raises ScoresError unless all runs of a dataset agree on the cluster and the question of each item."""
    first: dict[str, Run] = {}
    for run in sorted(sheets):
        other = first.setdefault(run[2], run)
        ours, theirs = sheets[run], sheets[other]
        for what in ("cluster", "question"):
            places = zip(ours.items, getattr(ours, f"{what}s"), getattr(theirs, f"{what}s"), strict=True)
            if moved := [item for item, one, two in places if one != two]:
                raise ScoresError(f"{_label(run)} and {_label(other)} disagree on the {what} of {_some(moved)}")


def _in_order(seeds: Mapping[str, Sequence[int]], datasets: Sequence[str]) -> list[Run]:
    return [(arm, seed, dataset) for arm in seeds for seed in sorted(seeds[arm]) for dataset in datasets]


def _table(sheets: Sequence[tuple[Run, ScoreSheet]]) -> pd.DataFrame:
    """items.parquet: one row per run and item."""
    lengths = [len(sheet.items) for _, sheet in sheets]
    columns: dict[str, Any] = {
        name: np.repeat(np.array([run[i] for run, _ in sheets], dtype=kind), lengths)
        for i, (name, kind) in enumerate((("arm", object), ("seed", int), ("dataset", object)))
    }
    for name in ("item", "cluster", "question"):
        columns[name] = [one for _, sheet in sheets for one in getattr(sheet, f"{name}s")]
    columns["correct"] = np.concatenate([sheet.correct for _, sheet in sheets]) if sheets else []
    texts = dict.fromkeys(("arm", "dataset", "item", "cluster", "question"), str)
    return pd.DataFrame(columns, columns=COLUMNS).astype(texts)


def _label(run: Run) -> str:
    return f"arm {run[0]}, seed {run[1]}, dataset {run[2]}"


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (", …" if len(listed) > 3 else "") if listed else "none"
