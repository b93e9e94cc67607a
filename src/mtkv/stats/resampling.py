"""The random numbers of a comparison, drawn once and shared by all arms, so that every difference stays paired.

In: `Answers`. Out, per dataset and arm: the mean over seeds under each resample of the items (a matrix product with
multinomial counts), and under each random flip of the items' signs (the permutation test of paired differences). Each
dataset has its own stream, keyed by its name: adding an arm or a dataset changes no number of the others.
"""

from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from mtkv.stats.items import Answers

Vector = NDArray[np.float64]


class Resamples:
    """`means[dataset][arm]` and `flips[dataset][arm]` are [resamples]; `flip_means[dataset]` is the flips' own mean."""

    def __init__(self, answers: Answers, resamples: int, seed: int) -> None:
        self.resamples = resamples
        self._seed = seed
        self.means: dict[str, dict[str, Vector]] = {}
        self.flips: dict[str, dict[str, Vector]] = {}
        self.flip_means: dict[str, Vector] = {}
        for dataset in answers.datasets:
            arms = [arm for arm in answers.seeds if answers.missing(arm, dataset) is None]
            if arms:
                self._draw(dataset, arms, np.stack([answers.matrix(arm, dataset).mean(axis=0) for arm in arms]))

    def _draw(self, dataset: str, arms: list[str], shares: Vector) -> None:
        """`shares` [arms, items]: each arm's share of seeds that answered each item right."""
        items = shares.shape[1]
        stream = np.random.default_rng([self._seed, crc32(dataset.encode())])
        counts = stream.multinomial(items, np.full(items, 1 / items), size=self.resamples).astype(np.float64)
        signs = stream.integers(0, 2, size=(self.resamples, items)) * 2.0 - 1.0
        self.means[dataset] = dict(zip(arms, shares @ counts.T / items, strict=True))
        self.flips[dataset] = dict(zip(arms, shares @ signs.T / items, strict=True))
        self.flip_means[dataset] = signs.mean(axis=1)

    def seed_draws(self, seeds: int, side: int) -> Vector:
        """Student's t with seeds − 1 degrees of freedom, [resamples]: the error of a mean of `seeds` in standard errors.

        Two sides of a comparison whose seeds have nothing to do with each other take different `side`s.
        """
        stream = np.random.default_rng([self._seed, crc32(b"seeds"), seeds, side])
        return stream.standard_t(seeds - 1, size=self.resamples)
