"""The random numbers of a comparison, drawn once and shared by all arms, so that every difference stays paired.

In: `Answers`. Out, per dataset and arm: the mean over seeds under each resample of the items (a matrix product with
multinomial counts), and under each random flip of signs (the permutation test of paired differences; the items of one
cluster flip together). Each dataset has its own stream, keyed by its name: adding an arm or a dataset changes no number of
the others.
"""

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri

from mtkv.stats.items import Answers

Vector = NDArray[np.float64]
CHUNK = 500  # resamples drawn at a time: all items of a dataset, so often, lie in memory


class Resamples:
    """Of every dataset and of the arms that answered all of it: `means[dataset][arm]` [resamples], the accuracy under each resample
    of the items; `flips[dataset][arm]` [resamples], the mean of its answers times random signs; `flip_means[dataset]`, that of the signs.
    """

    def __init__(self, answers: Answers, resamples: int, seed: int) -> None:
        self.resamples = resamples
        self._seed = seed
        self._drawn: dict[tuple[int, ...], Vector] = {}
        self._rows: dict[str, dict[str, int]] = {}
        self._means: dict[str, Vector] = {}
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
        means, flips = np.empty((2, len(arms), self.resamples))
        self.flip_means[dataset] = np.empty(self.resamples)
        chunks = [slice(start, min(start + CHUNK, self.resamples)) for start in range(0, self.resamples, CHUNK)]
        for chunk in chunks:
            counts = stream.multinomial(items, np.full(items, 1 / items), size=chunk.stop - chunk.start)
            means[:, chunk] = shares @ counts.T.astype(np.float64) / items
        units = items if groups is None else answers.n_groups(dataset)
        for chunk in chunks:
            signs = stream.integers(0, 2, size=(chunk.stop - chunk.start, units)) * 2.0 - 1.0
            signs = signs if groups is None else signs[:, groups]
            flips[:, chunk] = shares @ signs.T / items
            self.flip_means[dataset][chunk] = signs.mean(axis=1)
        self._rows[dataset], self._means[dataset] = {arm: row for row, arm in enumerate(arms)}, means
        self.means[dataset] = dict(zip(arms, means, strict=True))
        self.flips[dataset] = dict(zip(arms, flips, strict=True))

    def with_mixture(self, name: str, arms: Sequence[str], weights: Sequence[float]) -> "Resamples":
        """The same draws with one more arm `name`, Σ weightᵢ·armᵢ (all that is kept of an arm is linear in its answers)."""
        found = copy(self)
        for field in ("means", "flips"):
            old = getattr(self, field)
            new = {
                dataset: of | {name: sum(w * of[arm] for w, arm in zip(weights, arms, strict=True))}
                for dataset, of in old.items()
                if all(arm in of for arm in arms)
            }
            setattr(found, field, old | new)
        found._rows = {dataset: {arm: row for row, arm in enumerate(of)} for dataset, of in found.means.items()}
        found._means = {dataset: np.stack(list(of.values())) for dataset, of in found.means.items()}
        return found

    def of(self, arms: Sequence[str], dataset: str) -> Vector:
        """A copy of the `means` of several arms, [arms, resamples]."""
        return self._means[dataset][[self._rows[dataset][arm] for arm in arms]]

    def seed_draws(self, degrees: int, side: int) -> Vector:
        """Student's t with `degrees` of freedom, [resamples]: the error of a mean over seeds, in standard errors.

        Two sides of a comparison whose seeds are independent take different `side`s (0, 1) and so different draws.
        """
        return self._student(degrees, crc32(b"seeds"), degrees, side)

    def cluster_draws(self, clusters: int, dataset: str) -> Vector:
        """Student's t for the mean of a dataset's clusters, in standard errors, [resamples]; `clusters` − 1 degrees of freedom."""
        return self._student(clusters - 1, crc32(b"clusters"), clusters, crc32(dataset.encode()))

    @property
    def normal_draws(self) -> Vector:
        """Standard normal, [resamples]: for the error of a dataset whose answers do not vary (`intervals.edge_error`)."""
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


def bca_tails(draws: Vector, value: Vector, per_item: list[Vector], tails: Vector) -> Vector:
    """BCa's corrected tail probabilities [means, 2]: the quantiles to read of the bootstrap `draws` [means, resamples] in place of `tails`.

    `value` [means] are the observed means, `per_item` the values [means, items] of each dataset that they average.
    """
    # Each item's influence on the mean of the datasets' means; their skewness is the acceleration (Efron 1987, eq. 7.3).
    parts = [(x - x.mean(axis=-1, keepdims=True)) / (x.shape[-1] * len(per_item)) for x in per_item]
    influence = np.concatenate(parts, axis=-1)
    squares = (influence**2).sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        acceleration = (influence**3).sum(axis=-1, keepdims=True) / (6 * squares**1.5)
    sides = ((draws < value[:, None] - 1e-12).mean(axis=-1), (draws <= value[:, None] + 1e-12).mean(axis=-1))
    bias = ndtri(np.clip((sides[0] + sides[1]) / 2, 1e-6, 1 - 1e-6))[:, None]
    normal = bias + ndtri(tails)
    return np.where(squares > 0, ndtr(bias + normal / (1 - acceleration * normal)), tails)


def quantiles(draws: Vector, tails: Vector) -> Vector:
    """The quantiles of each row of `draws` at its own `tails` [rows, 2], as numpy interpolates them."""
    last = draws.shape[-1] - 1
    place = np.clip(tails, 0, 1) * last
    below = np.minimum(place.astype(int), last - 1)
    if (below == below[0]).all():
        first, second = np.stack([_smallest(draws, below[0, 0]), -_smallest(-draws, last - 1 - below[0, 1])[:, ::-1]]).T
    else:
        first, second = (np.take_along_axis(np.sort(draws, axis=-1), below + step, axis=-1) for step in (0, 1))
    return np.asarray(first + (second - first) * (place - below))


def _smallest(draws: Vector, rank: int) -> Vector:
    """[rows, 2]: in each row the values number `rank` and `rank` + 1 in ascending order, from 0.

    Only what lies below a bound is sorted; the bound comes from a sample of the row, and all is sorted where it proves too low.
    """
    sample = np.sort(draws[:, :: max(1, draws.shape[-1] // 200)], axis=-1)
    share = sample.shape[-1] * (rank + 2) / draws.shape[-1]
    bound = sample[:, min(int(share + 4 * np.sqrt(share)) + 3, sample.shape[-1] - 1)]
    kept = draws <= bound[:, None]
    counts = kept.sum(axis=-1)
    if counts.min() < rank + 2:
        return np.sort(draws, axis=-1)[:, rank : rank + 2]
    few = np.full((len(draws), counts.max()), np.inf)
    few[np.arange(counts.max()) < counts[:, None]] = draws[kept]
    few.sort(axis=-1)
    return few[:, rank : rank + 2]
