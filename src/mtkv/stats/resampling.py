"""The random numbers of a comparison, drawn once and shared by all arms, so that every difference stays paired.

In: `Answers`. Out, per dataset and arm: the mean over seeds under each resample of the items (a matrix product with
multinomial counts), and under each random flip of signs (the permutation test of paired differences; the items of one
cluster flip together). Each dataset has its own stream, keyed by its name: adding an arm or a dataset changes no number of
the others.
"""

from functools import cached_property
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mtkv.stats.answers import Answers

Vector = NDArray[np.float64]


class Resamples:
    """`means[dataset][arm]` and `flips[dataset][arm]` are [resamples]; `flip_means[dataset]` is the flips' own mean."""

    def __init__(self, answers: Answers, resamples: int, seed: int) -> None:
        self.resamples = resamples
        self._seed = seed
        self._drawn: dict[tuple[int, ...], Vector] = {}
        self.means: dict[str, dict[str, Vector]] = {}
        self.flips: dict[str, dict[str, Vector]] = {}
        self.flip_means: dict[str, Vector] = {}
        for dataset in answers.datasets:
            arms = [arm for arm in answers.seeds if answers.missing(arm, dataset) is None]
            if arms:
                shares = np.stack([answers.matrix(arm, dataset).mean(axis=0) for arm in arms])
                self._draw(answers, dataset, arms, shares)

    def _draw(self, answers: Answers, dataset: str, arms: list[str], shares: Vector) -> None:
        """`shares` [arms, items]: each arm's share of seeds that answered each item right."""
        items, groups = shares.shape[1], answers.groups(dataset)
        stream = np.random.default_rng([self._seed, crc32(dataset.encode())])
        counts = stream.multinomial(items, np.full(items, 1 / items), size=self.resamples).astype(np.float64)
        units = items if groups is None else answers.n_groups(dataset)
        signs = stream.integers(0, 2, size=(self.resamples, units)) * 2.0 - 1.0
        signs = signs if groups is None else signs[:, groups]
        self.means[dataset] = dict(zip(arms, shares @ counts.T / items, strict=True))
        self.flips[dataset] = dict(zip(arms, shares @ signs.T / items, strict=True))
        self.flip_means[dataset] = signs.mean(axis=1)

    def seed_draws(self, degrees: int, side: int) -> Vector:
        """Student's t, [resamples]: the error of a mean over seeds in standard errors, which have these degrees of freedom.

        Two sides of a comparison whose seeds have nothing to do with each other take different `side`s.
        """
        return self._student(degrees, crc32(b"seeds"), degrees, side)

    def cluster_draws(self, clusters: int, dataset: str) -> Vector:
        """The same for the mean of a dataset's `clusters`."""
        return self._student(clusters - 1, crc32(b"clusters"), clusters, crc32(dataset.encode()))

    @property
    def normal_draws(self) -> Vector:
        """Standard normal, [resamples]: how far an edge of what is possible lies from answers that do not vary."""
        return self._student(0, crc32(b"edges"))

    def _student(self, degrees: int, *key: int) -> Vector:
        """t draws (normal for 0 `degrees`) in random order, stratified: one of each of [resamples] equally likely strips."""
        if key not in self._drawn:
            stream = np.random.default_rng([self._seed, *key])
            self._drawn[key] = stream.permutation(stats.t.ppf(self._strips, degrees or np.inf))
        return self._drawn[key]

    @cached_property
    def _strips(self) -> Vector:
        return (np.arange(self.resamples) + 0.5) / self.resamples
