"""Intervals for an accuracy or a difference of two, with seeds and items kept apart.

In: correctness [seeds, items] per dataset, every seed having answered the same items (a crossed design; mean squares as in
a two-way table without replication). The error of a mean is drawn on two levels, whose variances add up to its own:
- seeds: s²(seed means) / seeds. Three seeds can be resampled in ten ways only, with 2/3 of the variance, so this level is
  drawn from the t distribution of their mean instead. It holds what the seeds do to all items and what they do to each.
- items: (s²(item means) − MS_residual / seeds) / items, by the bootstrap of items, all seeds together, shrunk to that
  variance: what a seed does to single items is already in the first level.
One seed has no first level: the interval speaks of that one trained model, not of how another seed would have come out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from mtkv.stats.items import Answers
from mtkv.stats.resampling import Resamples

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of means, over one dataset or stratified over several with equal weights.

    All in 0..1. `draws` [resamples] is the two-level distribution that low and high are percentiles of; `se` and `df`
    are its closed-form standard error and Satterthwaite degrees of freedom. `sd_seeds` is NaN for one seed.
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


def wilson(correct: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of `correct` right answers out of `n`."""
    low, high = proportion_confint(correct, n, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


def estimate(
    answers: Answers, resamples: Resamples, arm: str, column: str, confidence: float, baseline: str | None = None
) -> Estimate:
    """The accuracy of `arm` in a column (a dataset or "macro"), or its difference from `baseline`. None may be missing."""
    strata = answers.strata(column)
    sides = [arm] if baseline is None else [arm, baseline]
    sources = [source for source in _seed_sources(answers, sides, strata) if source[0].shape[0] > 1]
    draws, variances, degrees = np.zeros(resamples.resamples), [], []
    for index, source in enumerate(sources):
        seeds = source[0].shape[0]
        variances.append(_variance(_seed_means(source)) / seeds)
        degrees.append(seeds - 1)
        draws += np.sqrt(variances[-1]) * resamples.seed_draws(seeds, index)
    per_item = [_difference([answers.matrix(side, dataset).mean(axis=0) for side in sides]) for dataset in strata]
    for index, (dataset, shares) in enumerate(zip(strata, per_item, strict=True)):
        own = item_variance(shares, [source[index] for source in sources])
        variances.append(own / shares.size / len(strata) ** 2)
        degrees.append(max(shares.size - 1, 1))
        shrink = np.sqrt(own / _variance(shares)) if own else 0.0
        resampled = _difference([resamples.means[dataset][side] for side in sides])
        draws += (shares.mean() + shrink * (resampled - shares.mean())) / len(strata)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(
        value=float(np.mean([shares.mean() for shares in per_item])),
        low=float(low),
        high=float(high),
        se=float(np.sqrt(sum(variances))),
        df=satterthwaite(variances, degrees),
        n_items=sum(shares.size for shares in per_item),
        n_seeds=max(len(answers.seeds[side]) for side in sides),
        sd_seeds=float(np.sqrt(sum(_variance(_seed_means(source)) for source in sources))) if sources else float("nan"),
        sd_items=float(np.sqrt(np.mean([_variance(shares) for shares in per_item]))),
        draws=draws,
    )


def item_variance(shares: NDArray[np.float64], sources: list[Matrix]) -> float:
    """Variance [1] between items of `shares` [items], less what the few `sources` [seeds, items] they average make of it."""
    noise = sum(_residual_variance(source) / source.shape[0] for source in sources)
    return max(0.0, _variance(shares) - noise)


def satterthwaite(variances: list[float], degrees: list[int]) -> float:
    """Degrees of freedom of a sum of independent variance estimates; infinite when all are zero."""
    total = sum(variances)
    return total**2 / sum(v**2 / df for v, df in zip(variances, degrees, strict=True)) if total > 0 else float("inf")


def _seed_sources(answers: Answers, sides: list[str], strata: list[str]) -> list[list[Matrix]]:
    """What varies by seed, as one list of [seeds, items] per independent source.

    Two arms with the same seeds give one source, their difference seed by seed. An arm with one seed is repeated for each
    seed of the other: right for a model that no seed enters (the raw student, a teacher), and for a trained one a
    statement about that one model. Otherwise the seeds of the two arms are independent of each other.
    """
    matrices = [[answers.matrix(side, dataset) for dataset in strata] for side in sides]
    if len(sides) == 1:
        return matrices
    seeds = [answers.seeds[side] for side in sides]
    if seeds[0] == seeds[1] or min(map(len, seeds)) == 1:
        return [[ours - theirs for ours, theirs in zip(*matrices, strict=True)]]
    return matrices


def _difference(sides: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return sides[0] if len(sides) == 1 else sides[0] - sides[1]


def _seed_means(strata: list[Matrix]) -> NDArray[np.float64]:
    return np.mean([matrix.mean(axis=1) for matrix in strata], axis=0)


def _residual_variance(matrix: Matrix) -> float:
    """Mean square of what neither the seed nor the item explains."""
    seeds, items = matrix.shape
    residual = matrix - matrix.mean(axis=1, keepdims=True) - matrix.mean(axis=0, keepdims=True) + matrix.mean()
    return float((residual**2).sum() / ((seeds - 1) * max(items - 1, 1)))


def _variance(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1)) if values.size > 1 else 0.0
