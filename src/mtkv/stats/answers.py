"""`Answers`: who answered what, as one matrix per arm and dataset; every number of a comparison is computed from it.

Items of one cluster (a passage, a template) are alike. A dataset of `min_clusters` clusters or more is treated as a sample of
clusters: its errors are those of whole clusters. A dataset of fewer is taken as made of just these, and its intervals speak
of new questions of the same kinds: three clusters have no distribution to learn (no sign-flip test of three can go below
p = 0.25). Both numbers, and the design effect, are in cells.parquet. A question that is asked twice is no new question, and
a model answers it alike: without enough clusters, the repeats of one question are a cluster, however many such there are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mtkv.stats.sentences import listed, tell

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

    `items` is the long table of items.parquet, `correct` maps (arm, seed, dataset) to shares [items], `reasons` maps the
    runs that are missing to why, `clusters` maps a dataset to the cluster number of each of its items, `questions` to the
    number of its question.
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
        """The same for `arms` that have the same seeds, [arms, seeds, items]."""
        stack = self._stack(arms[0], dataset)
        return stack.correct[[stack.rows[arm] for arm in arms]]

    def shares(self, arms: Sequence[str], dataset: str) -> NDArray[np.float64]:
        """The share of seeds that answered each item right, [arms, items]."""
        stack = self._stack(arms[0], dataset)
        return stack.shares[[stack.rows[arm] for arm in arms]]

    def _stack(self, arm: str, dataset: str) -> Stack:
        """All arms with the seeds of `arm` that have all answers to the dataset, as one array; made once."""
        key = tuple(self.seeds[arm]), dataset
        if key not in self._matrices:
            runs = {
                one: [(one, seed, dataset) for seed in key[0]]
                for one, own in self.seeds.items()
                if tuple(own) == key[0]
            }
            there = [one for one, own in runs.items() if all(run in self.correct for run in own)]
            correct = np.stack([np.stack([self.correct[run] for run in runs[one]]) for one in there])
            self._matrices[key] = Stack({one: row for row, one in enumerate(there)}, correct, correct.mean(axis=1))
        return self._matrices[key]

    def missing(self, arm: str, column: str) -> str | None:
        """Why an arm has no number in a column, or None when it has one."""
        runs = [(arm, seed, dataset) for dataset in self.strata(column) for seed in self.seeds[arm]]
        gaps = [
            tell("{dataset}, seed {seed}: {reason}", dataset=run[2], seed=run[1], reason=self.reasons[run])
            for run in runs
            if run in self.reasons
        ]
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
    """Number of groups; 0 when they are not known, or every item is its own."""
    number = 0 if codes is None or codes.size == 0 else int(codes.max()) + 1
    return number if codes is not None and number < codes.size else 0
