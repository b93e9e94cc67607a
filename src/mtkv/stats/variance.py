"""Variances of a mean over items: between items or whole clusters, without what the few seeds make of it.

For items with values xᵢ in clusters g the variance of the mean is G/(G−1)·Σ_g(Σ_{i∈g}(xᵢ − x̄))²/n², the cluster-robust (CR1)
variance of a regression on a constant (Liang & Zeger 1986); with one item per cluster it is s²/n. Everything here is that,
times n: a variance per item. Matrices are [seeds, items]; `groups` [items] are cluster numbers, None: every item its own.
"""

import numpy as np
from numpy.typing import NDArray

from mtkv.stats.answers import Codes

Vector = NDArray[np.float64]


def spread(values: Vector, groups: Codes | None = None) -> float:
    """Variance per item of `values` [items]; divided by their number it is the variance of their mean."""
    if values.size < 2:
        return 0.0
    sums = cluster_sums(values[None] - values.mean(), groups)
    return float(_correction(sums) * (sums**2).sum() / values.size) if sums.shape[1] > 1 else 0.0


def residual_spread(matrix: Vector, groups: Codes | None = None) -> float:
    """The same of one seed's answers, left after what the seed does to all items and what the item is for all seeds."""
    seeds, items = matrix.shape
    if items < 2:
        return 0.0
    residual = matrix - matrix.mean(axis=1, keepdims=True) - matrix.mean(axis=0, keepdims=True) + matrix.mean()
    sums = cluster_sums(residual, groups)
    return float(_correction(sums) * (sums**2).sum() / ((seeds - 1) * items)) if sums.shape[1] > 1 else 0.0


def item_variance(shares: Vector, sources: list[Vector], groups: Codes | None = None) -> float:
    """`spread` of `shares` [items], less what the few `sources` [seeds, items] they average make of it."""
    noise = sum(residual_spread(source, groups) / source.shape[0] for source in sources)
    return max(0.0, spread(shares, groups) - noise)


def sample_variance(values: Vector) -> float:
    """s², or 0 of a single value."""
    return float(values.var(ddof=1)) if values.size > 1 else 0.0


def satterthwaite(variances: list[float], degrees: list[int]) -> float:
    """Degrees of freedom of a sum of independent variance estimates; infinite when all are zero."""
    total = sum(variances)
    return total**2 / sum(v**2 / df for v, df in zip(variances, degrees, strict=True)) if total > 0 else float("inf")


def cluster_sums(matrix: Vector, groups: Codes | None) -> Vector:
    """[rows, clusters]: the sum of each row over the items of each cluster."""
    return matrix if groups is None else np.stack([np.bincount(groups, weights=row) for row in matrix])


def _correction(sums: Vector) -> float:
    clusters = sums.shape[1]
    return clusters / (clusters - 1)
