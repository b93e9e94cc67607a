"""Intervals for an accuracy or a difference of two, with seeds and items kept apart.

In: correctness [seeds, items] per dataset, every seed having answered the same items (a crossed design; mean squares as in
a two-way table without replication). The error of a mean is drawn on two levels, whose variances add up to its own:
- seeds: s²(seed means) / seeds. Three seeds can be resampled in ten ways only, with 2/3 of the variance, so this level is
  drawn from the t distribution of their mean instead. It holds what the seeds do to all items and what they do to each; the
  latter is also known from the residual mean square, below which seeds that agree by accident are not believed (`seed_level`).
- items: what `variance` leaves between items after the seeds' share, by the bootstrap of items, all seeds together, shrunk
  to that variance; between whole clusters where items come in clusters, then from t with one degree less than clusters.
One seed has no first level: the interval speaks of that one trained model, not of how another seed would have come out; it
is bias-corrected and accelerated (BCa, Efron 1987), stratified by dataset. Others are percentiles of the two-level draws.
A dataset whose answers do not vary at all (all right; no item on which two arms differ) has nothing to resample, which is no
certainty: its error is drawn from the score interval of such data (`unvaried`).
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri
from statsmodels.stats.proportion import proportion_confint

from mtkv.stats.answers import Answers, Codes
from mtkv.stats.resampling import Resamples
from mtkv.stats.variance import item_variance, residual_spread, sample_variance, satterthwaite, spread

Matrix = NDArray[np.float64]
NORMAL = 1_000_000  # degrees of freedom from which on Student's t is the normal distribution
__all__ = ["Estimate", "estimate", "item_variance", "satterthwaite", "seed_sources", "wilson"]


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of means, over one dataset or stratified over several with equal weights.

    All in 0..1. `draws` [resamples] is the two-level distribution that low and high are percentiles of; `se` and `df`
    are its closed-form standard error and Satterthwaite degrees of freedom; `se_items` is that of the items alone, as if
    seeds averaged to one model. `sd_seeds` is NaN for one seed. `method` is how low and high were found; `seed_means` are the
    means by seed, of each source of `seed_sources`; `unvaried` says that the answers to some dataset do not vary at all.
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
        """The same with the larger of both standard errors: seeds that agree by accident lend no precision."""
        return replace(self, se=max(self.se, self.se_items))


def wilson(correct: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of `correct` right answers out of `n`."""
    low, high = proportion_confint(correct, n, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


def estimate(
    answers: Answers, resamples: Resamples, arm: str, column: str, confidence: float, baseline: str | None = None
) -> Estimate:
    """The accuracy of `arm` in a column (a dataset or "macro"), or its difference from `baseline`. None may be missing."""
    strata = answers.strata(column)
    sides = [arm] if baseline is None else [arm, baseline]
    sources = [source for source in seed_sources(answers, sides, strata) if source[0].shape[0] > 1]
    groups = [answers.groups(dataset) for dataset in strata]
    seed_means = [_seed_means(source) for source in sources]
    draws, variances, degrees = np.zeros(resamples.resamples), [], []
    for side, (means, source) in enumerate(zip(seed_means, sources, strict=True)):
        variance, df = seed_level(means, source, groups, confidence)
        variances.append(variance)
        degrees.append(df)
        draws += np.sqrt(variance) * resamples.seed_draws(df, side)
    per_item = [_difference([answers.matrix(side, dataset).mean(axis=0) for side in sides]) for dataset in strata]
    flat, naive = [], 0.0
    for index, (dataset, shares) in enumerate(zip(strata, per_item, strict=True)):
        units = shares.size if groups[index] is None else answers.n_groups(dataset)
        seen = [source[index] for source in sources]
        own, plain = (
            item_variance(shares, seen, groups[index]) / shares.size,
            spread(shares, groups[index]) / shares.size,
        )
        degrees.append(max(units - 1, 1))
        error = np.zeros(1)
        if unvaried(plain, units, seen):
            flat.append((units, shares.mean()))
        elif groups[index] is None:
            shrink = np.sqrt(own / plain) if own else 0.0
            error = shrink * (_difference([resamples.means[dataset][side] for side in sides]) - shares.mean())
        else:
            error = np.sqrt(own) * resamples.cluster_draws(units, dataset)
        variances.append(own / len(strata) ** 2)
        naive += plain / len(strata) ** 2
        draws += (shares.mean() + error) / len(strata)
    value = float(np.mean([shares.mean() for shares in per_item]))
    clustered = any(codes is not None for codes in groups)
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if not sources and not clustered:
        tails = bca_tails(draws, value, per_item, tails)
    if flat:
        edges, least = edge_error(resamples.normal_draws, flat, -1.0 if baseline else 0.0)
        draws = draws + edges / len(strata)
        naive += least / len(strata) ** 2
        variances.append(least / len(strata) ** 2)
        degrees.append(NORMAL)
    low, high = np.quantile(draws, tails)
    return Estimate(
        value=value,
        low=float(low),
        high=float(high),
        se=float(np.sqrt(sum(variances))),
        df=satterthwaite(variances, degrees),
        n_items=sum(shares.size for shares in per_item),
        n_seeds=max(len(answers.seeds[side]) for side in sides),
        sd_seeds=float(np.sqrt(sum(sample_variance(means) for means in seed_means))) if sources else float("nan"),
        sd_items=float(np.sqrt(np.mean([sample_variance(shares) for shares in per_item]))),
        draws=draws,
        method="two-level" if sources else "clusters" if clustered else "bca",
        seed_means=tuple(seed_means),
        se_items=float(np.sqrt(naive)),
        unvaried=bool(flat),
    )


def seed_level(means: Matrix, source: list[Matrix], groups: list[Codes | None], confidence: float) -> tuple[float, int]:
    """Variance of the mean of the seeds' `means` [seeds], and its degrees of freedom.

    Three seeds may agree by accident, to the last item even; but each seed's mean varies at least by what a seed does to
    single items, which many items tell. Where half of that alone makes the wider interval, it is what counts. (All of it
    would cover 98 % for 95 %, nothing of it would call a difference certain because three means coincide.)
    """
    seeds = means.size
    least = (
        sum(residual_spread(matrix, codes) / matrix.shape[1] for matrix, codes in zip(source, groups, strict=True))
        / len(source) ** 2
    )
    units = sum(
        (matrix.shape[1] if codes is None else codes.max() + 1) - 1
        for matrix, codes in zip(source, groups, strict=True)
    )
    options = [(sample_variance(means) / seeds, seeds - 1), (least / seeds / 4, max((seeds - 1) * int(units), 1))]
    return max(options, key=lambda one: one[0] * _critical(one[1], confidence) ** 2)


def unvaried(variance: float, units: int, sources: list[Matrix]) -> bool:
    """Whether a dataset shows no variation: `variance` over its items (or clusters) is 0, and all seeds of `sources` agree.

    A single item shows none, whatever its seeds say.
    """
    return variance < 1e-15 and (units < 2 or all(np.ptp(matrix, axis=0).max() < 1e-12 for matrix in sources))


def edge_error(z: Matrix, flat: list[tuple[int, float]], least: float) -> tuple[Matrix, float]:
    """Error of the sum of several means, each of so many answers that do not vary, [draws]; and its mean square (wider side).

    `flat` holds number and value, within `least`..1; `z` is standard normal. If a share m of a dataset's items were other than
    those seen, and as far off as they can be, Σ n·m/(1 − m) ≤ z² is what the score test at level z lets pass: m = z²/(N + z²)
    over F datasets of at least n = N/F items. All right: Wilson's interval, pooled. No item on which two arms differ, or
    each: Tango's (Stat. Med. 1998).
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


def bca_tails(draws: Matrix, value: float, per_item: list[Matrix], tails: Matrix) -> Matrix:
    """The probabilities at which BCa reads the bootstrap distribution instead of at `tails`."""
    # Each item's influence on the mean of the datasets' means; their skewness is the acceleration (Efron 1987, eq. 7.3).
    influence = np.concatenate([(shares - shares.mean()) / (shares.size * len(per_item)) for shares in per_item])
    if not influence.any():
        return tails
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    bias = ndtri(np.clip(((draws < value - 1e-12).mean() + (draws <= value + 1e-12).mean()) / 2, 1e-6, 1 - 1e-6))
    normal = bias + ndtri(tails)
    return np.asarray(ndtr(bias + normal / (1 - acceleration * normal)))


def seed_sources(answers: Answers, sides: list[str], strata: list[str]) -> list[list[Matrix]]:
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
