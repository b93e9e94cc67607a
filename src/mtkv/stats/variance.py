"""Variances of a mean over items: between items or whole clusters, with the noise of few seeds taken off.

For items with values xᵢ in clusters g the variance of the mean is G/(G−1)·Σ_g(Σ_{i∈g}(xᵢ − x̄))²/n², the cluster-robust (CR1)
variance of a regression on a constant (Liang & Zeger 1986); with one item per cluster it is s²/n. Everything here is that,
times n: a variance per item. Matrices are [..., seeds, items], and their leading axes (pairs of arms) those of the result;
`groups` [items] are cluster numbers, None: every item its own.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtkv.stats.items import Codes

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
