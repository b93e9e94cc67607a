"""Intervals for an accuracy or a difference of two, with the variation of seeds and of items kept apart.

In: correctness [seeds, items] per dataset, every seed having answered the same items (a crossed design; mean squares as in
a two-way table without replication). Out: `Estimate`. The error of a mean is drawn on two levels, whose variances add up:
- seeds: s²(seed means) / seeds. Three seeds can be resampled in ten ways only, with 2/3 of the variance, so this level is
  drawn from the t distribution of their mean instead. It holds what a seed does to all items and what it does to each; the
  latter is also known from the residual mean square, a floor for seeds that agree by accident (`seed_level`).
- items: the variance between items without the seeds' share of it (`item_variance`), by the bootstrap of items, all seeds together,
  shrunk to that variance; between whole clusters where items come in clusters, then from t with one degree less than clusters.
One seed has no first level: the interval speaks of that one trained model, not of how another seed would have come out; it
is bias-corrected and accelerated (BCa, Efron 1987), stratified by dataset. Other intervals are percentiles of the two-level draws.
A dataset whose answers do not vary at all (all right; no item on which two arms differ) has nothing to resample, which is no
certainty: its error is drawn from the score interval of such data (`edge_error`).

For items with values xᵢ in clusters g the variance of the mean is G/(G−1)·Σ_g(Σ_{i∈g}(xᵢ − x̄))²/n², the cluster-robust (CR1)
variance of a regression on a constant (Liang & Zeger 1986); with one item per cluster it is s²/n. `spread`, `residual_spread` and
`item_variance` are that times n: a variance per item. Matrices are [..., seeds, items], and their leading axes (pairs of arms) those of
the result; `groups` [items] are cluster numbers, None: every item its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from mtkv.stats.bootstrap import Resamples, bca_tails, quantiles
from mtkv.stats.items import Answers, Codes

Vector = NDArray[np.float64]


def spread(values: Vector, groups: Codes | None = None) -> Vector:
    """Variance per item of `values` [..., items]; divided by the number of items it is the variance of their mean."""
    sums = cluster_sums(values - values.mean(axis=-1, keepdims=True), groups)
    return np.asarray(_correction(sums) * (sums**2).sum(axis=-1) / values.shape[-1])


def residual_spread(matrix: Vector, groups: Codes | None = None) -> Vector:
    """Variance per item of one seed's answers [..., seeds, items] once the means of seeds and of items are taken off (interaction)."""
    seeds, items = matrix.shape[-2:]
    by_seed, by_item, whole = (matrix.mean(axis=axes, keepdims=True) for axes in (-1, -2, (-2, -1)))
    sums = cluster_sums(matrix - by_seed - by_item + whole, groups)
    return np.asarray(_correction(sums) * (sums**2).sum(axis=(-2, -1)) / ((seeds - 1) * items))


def item_variance(shares: Vector, sources: list[Vector], groups: Codes | None = None) -> Vector:
    """`spread` of `shares` [..., items], less the noise in it: `shares` average `sources` [..., seeds, items] over a few seeds only."""
    noise = sum(residual_spread(source, groups) / source.shape[-2] for source in sources)
    return np.asarray(np.maximum(0.0, spread(shares, groups) - noise))


def sample_variance(values: Vector) -> Vector:
    """s² of `values` [..., n], or 0 of a single value."""
    return np.asarray(values.var(axis=-1, ddof=1)) if values.shape[-1] > 1 else np.zeros(values.shape[:-1])


def satterthwaite(variances: Sequence[float], degrees: Sequence[float]) -> float:
    """Degrees of freedom (Satterthwaite) of a sum of independent variance estimates; the sum must be positive."""
    total = sum(variances)
    return total**2 / sum(v**2 / df for v, df in zip(variances, degrees, strict=True))


def cluster_sums(matrix: Vector, groups: Codes | None) -> Vector:
    """[..., clusters]: the sums of `matrix` [..., items] over the items of each cluster."""
    if groups is None:
        return matrix
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    return np.asarray(np.add.reduceat(matrix[..., order], starts, axis=-1))


def _correction(sums: Vector) -> float:
    """G/(G − 1); 0 for a single cluster or item, which shows no variation."""
    clusters = sums.shape[-1]
    return clusters / (clusters - 1) if clusters > 1 else 0.0


NORMAL = 1_000_000  # degrees of freedom from which on Student's t is the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of means, over one dataset or stratified over several with equal weights.

    All in 0..1. `draws` [resamples] is the two-level distribution that low and high are percentiles of; `se` and `df`
    are its closed-form standard error and Satterthwaite degrees of freedom; `se_items` is that of the items alone, as if
    seeds averaged to one model. `sd_seeds` is NaN for one seed. `method` is how low and high were found; `seed_means` are the
    means by seed, of each source of `seed_sources`; `unvaried`: the answers to some dataset do not vary at all.
    """

    value: float
    low: float
    high: float
    se: float
    df: float
    n_items: int
    n_seeds: int
    sd_seeds: float
    sd_items: float
    draws: NDArray[np.float64]
    method: str = "two-level"
    seed_means: tuple[NDArray[np.float64], ...] = ()
    se_items: float = 0.0
    unvaried: bool = False

    @property
    def safe(self) -> Self:
        """This estimate with the larger of both standard errors: seeds that agree by accident lend no precision."""
        return replace(self, se=max(self.se, self.se_items))


def wilson(correct: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of `correct` right answers out of `n`."""
    low, high = proportion_confint(correct, n, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


def estimate(
    answers: Answers, resamples: Resamples, arm: str, column: str, confidence: float, baseline: str | None = None
) -> Estimate:
    """The accuracy of `arm` in a column (a dataset or "macro"), or its difference from `baseline`. None may be missing."""
    return estimates(answers, resamples, arm, column, confidence, [] if baseline is None else [baseline]).one(0)


def estimates(
    answers: Answers, resamples: Resamples, arm: str, column: str, confidence: float, others: Sequence[str]
) -> "Estimates":
    """The differences of `arm` from each of `others`, all at once; without others, its accuracy. `others` must have the same seeds."""
    strata = answers.strata(column)
    groups = [answers.groups(dataset) for dataset in strata]
    sources = [source for source in seed_sources(answers, arm, others, strata) if source[0].shape[-2] > 1]
    per_item = [answers.shares([arm], dataset) for dataset in strata]
    if others:
        per_item = [ours - answers.shares(others, dataset) for ours, dataset in zip(per_item, strata, strict=True)]
    found = Estimates(per_item, sources, resamples)
    found.n_seeds = max(len(answers.seeds[side]) for side in (arm, *others[:1]))
    for side, source in enumerate(sources):
        found.add_seeds(source, groups, confidence, side)
    for index, dataset in enumerate(strata):
        if groups[index] is not None:
            units = answers.n_groups(dataset)
            found.add_items(index, groups[index], units, resamples.cluster_draws(units, dataset))
            continue
        error = resamples.of(others or [arm], dataset)
        if others:
            np.subtract(resamples.means[dataset][arm], error, out=error)
        found.add_items(index, None, per_item[index].shape[-1], error)
    clustered = any(codes is not None for codes in groups)
    found.method = "two-level" if sources else "clusters" if clustered else "bca"
    found.finish(confidence, -1.0 if others else 0.0)
    return found


class Estimates:
    """Several `Estimate`s at once: numbers are [means], `draws` [means, resamples]. Add seeds and items, then `finish`, then read `one`.

    `per_item` holds the shares [means, items] of each dataset, `sources` those of `seed_sources` that have several seeds.
    """

    method, n_seeds = "", 1

    def __init__(self, per_item: list[Vector], sources: list[list[Vector]], resamples: Resamples) -> None:
        self.per_item, self.sources, self.resamples = per_item, sources, resamples
        self.value = np.mean([shares.mean(axis=-1) for shares in per_item], axis=0)
        self.draws = np.zeros((len(self.value), resamples.resamples))
        self.variances: list[Vector] = []
        self.degrees: list[Vector] = []
        self.naive: list[Vector] = [np.zeros(len(self.value))]
        self.seed_means: list[Vector] = []
        self.flat: list[NDArray[np.bool_]] = []
        self.units: list[int] = []

    def add_seeds(self, source: list[Vector], groups: list[Codes | None], confidence: float, side: int) -> None:
        """Add the error of the seeds of one of `sources`. `side`: its number, so that independent sources have independent draws."""
        means = np.mean([matrix.mean(axis=-1) for matrix in source], axis=0)
        means = np.broadcast_to(means, (len(self.value), means.shape[-1]))
        variance, df = (np.broadcast_to(one, len(means)) for one in seed_level(means, source, groups, confidence))
        self.seed_means.append(means)
        self.variances.append(variance)
        self.degrees.append(df)
        for one in set(df.tolist()):
            self.draws += np.where(df == one, np.sqrt(variance), 0.0)[:, None] * self.resamples.seed_draws(one, side)

    def add_items(self, index: int, codes: Codes | None, units: int, error: Vector) -> None:
        """Add the error of a dataset's items, or of its clusters when there are `codes` [items]; `units` is the number of either.

        `error` [means, resamples]: the bootstrap means of the shares (overwritten); with clusters, draws of Student's t.
        """
        shares, strata = self.per_item[index], len(self.per_item)
        items, mean = shares.shape[-1], shares.mean(axis=-1)
        seen = [source[index] for source in self.sources]
        own, plain = item_variance(shares, seen, codes) / items, spread(shares, codes) / items
        flat = unvaried(plain, units, seen)
        own = np.where(flat, 0.0, own)
        if codes is None:
            shrink = np.sqrt(np.divide(own, plain, out=np.zeros_like(own), where=own > 0))
            error -= mean[:, None]
            error *= (shrink / strata)[:, None]
            self.draws += error
        else:
            self.draws += (np.sqrt(own) / strata)[:, None] * error
        self.variances.append(own / strata**2)
        self.degrees.append(np.full(len(own), max(units - 1, 1)))
        self.naive.append(plain / strata**2)
        self.flat.append(flat)
        self.units.append(units)

    def finish(self, confidence: float, least: float) -> None:
        """Compute the limits `low` and `high` from the errors added so far. `least`: the smallest possible value (0, or −1)."""
        self.draws += self.value[:, None]
        tails = np.tile([(1 - confidence) / 2, (1 + confidence) / 2], (len(self.value), 1))
        if self.method == "bca":
            tails = bca_tails(self.draws, self.value, self.per_item, tails)
        self.unvaried = np.any(self.flat, axis=0)
        extra = np.zeros(len(self.value))
        for place in np.flatnonzero(self.unvaried):
            means = [shares[place].mean() for shares in self.per_item]
            each = zip(self.units, means, self.flat, strict=True)
            alike = [(units, mean) for units, mean, flat in each if flat[place]]
            error, square = edge_error(self.resamples.normal_draws, alike, least)
            self.draws[place] += error / len(means)
            extra[place] = square / len(means) ** 2
        self.variances.append(extra)
        self.degrees.append(np.full(len(extra), NORMAL))
        self.naive.append(extra)
        self.low, self.high = quantiles(self.draws, tails).T

    def one(self, place: int) -> Estimate:
        """The mean number `place`, as an `Estimate`."""
        means = tuple(source[place] for source in self.seed_means)
        variances = [float(one[place]) for one in self.variances]
        return Estimate(
            value=float(self.value[place]),
            low=float(self.low[place]),
            high=float(self.high[place]),
            se=float(np.sqrt(sum(variances))),
            df=satterthwaite(variances, [float(one[place]) for one in self.degrees]),
            n_items=sum(shares.shape[-1] for shares in self.per_item),
            n_seeds=self.n_seeds,
            sd_seeds=float(np.sqrt(sum(map(sample_variance, means)))) if means else float("nan"),
            sd_items=float(np.sqrt(np.mean([sample_variance(shares[place]) for shares in self.per_item]))),
            draws=self.draws[place],
            method=self.method,
            seed_means=means,
            se_items=float(np.sqrt(sum(float(one[place]) for one in self.naive))),
            unvaried=bool(self.unvaried[place]),
        )


def seed_level(
    means: Vector, source: list[Vector], groups: list[Codes | None], confidence: float
) -> tuple[Vector, Vector]:
    """Variance of the mean of the seeds' `means` [..., seeds], and its degrees of freedom.

    Three seeds may agree by accident, to the last item even; but each seed's mean varies at least by what a seed does to
    single items, which many items tell. Half of that (as a standard error) is used where it makes the wider interval: all of it
    would cover 98 % instead of 95 %, none of it would call a difference certain because three means coincide.
    """
    seeds = means.shape[-1]
    sizes = [matrix.shape[-1] for matrix in source]
    parts = [residual_spread(matrix, codes) / size for matrix, codes, size in zip(source, groups, sizes, strict=True)]
    units = sum((n if codes is None else codes.max() + 1) - 1 for n, codes in zip(sizes, groups, strict=True))
    seen, least = sample_variance(means) / seeds, np.sum(parts, axis=0) / len(source) ** 2 / seeds / 4
    few, many = seeds - 1, max((seeds - 1) * int(units), 1)
    wider = seen * _critical(few, confidence) ** 2 >= least * _critical(many, confidence) ** 2
    return np.where(wider, seen, least), np.where(wider, few, many)


def unvaried(variance: Vector, units: int, sources: list[Vector]) -> NDArray[np.bool_]:
    """Whether a dataset shows no variation: `variance` over its items (or clusters) is 0, and all seeds of `sources` agree.

    A single item shows none, whatever its seeds say.
    """
    flat = variance < 1e-15
    for matrix in sources if units > 1 else []:
        flat = flat & (np.ptp(matrix, axis=-2).max(axis=-1) < 1e-12)
    return flat


def edge_error(z: Vector, flat: list[tuple[int, float]], least: float) -> tuple[Vector, float]:
    """Error [draws] of the sum of several means of answers that do not vary, and the mean square of its wider side.

    `flat` holds (number of items, value) of each mean, values within `least`..1; `z` is standard normal. If a share m of a dataset's
    items were other than those seen, and as far off as they can be, Σ n·m/(1 − m) ≤ z² is what the score test at level z lets pass:
    m = z²/(N + z²) over F datasets of at least n = N/F items. Where all are right that is Wilson's interval, pooled; where two arms
    differ on no item, or on each, Tango's (Stat. Med. 1998).
    """
    units, values = min(number for number, _ in flat), np.array([value for _, value in flat])
    sides = []
    for room in (values - least, 1 - values):
        count = max(int((room > 0).sum()), 1)
        sides.append(np.minimum(count * room.max() * z**2 / (count * units + z**2), room.sum()))
    return np.where(z < 0, -sides[0], sides[1]), float(max((side**2).mean() for side in sides))


@lru_cache(maxsize=4096)
def _critical(df: int, confidence: float) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, df))


def seed_sources(answers: Answers, arm: str, others: Sequence[str], strata: Sequence[str]) -> list[list[Vector]]:
    """What varies by seed, as one list of [others or 1, seeds, items] per independent source.

    Two arms with the same seeds give one source, their difference seed by seed. An arm with one seed is repeated for each
    seed of the other: right for a model that no seed enters (the raw student, a teacher), and for a trained one a
    statement about that one model. Otherwise the seeds of the two arms are independent of each other.
    """
    ours = [answers.matrices([arm], dataset) for dataset in strata]
    if not others:
        return [ours]
    theirs = [answers.matrices(others, dataset) for dataset in strata]
    seeds = answers.seeds[arm], answers.seeds[others[0]]
    if seeds[0] == seeds[1] or min(map(len, seeds)) == 1:
        return [[one - two for one, two in zip(ours, theirs, strict=True)]]
    return [ours, theirs]
