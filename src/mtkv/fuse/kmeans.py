"""k-means without randomness, for many small groups of points at once."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def kmeans(
    points: Float[Tensor, "groups points features"], real: Bool[Tensor, "groups points"], clusters: int, steps: int = 8
) -> Float[Tensor, "groups clusters features"]:
    """Centroids after `steps` Lloyd iterations (Lloyd 1982) from a farthest-point start (Gonzalez 1985).

    The start: the point farthest from the mean, then always the point farthest from those chosen (ties: the first). A cluster that
    loses its points stays where it is, so a group with fewer distinct points than clusters repeats some. Zeros for an empty group.
    """
    points = points.masked_fill(~real[..., None], 0)
    mean = points.sum(1) / real.sum(1).clamp_min(1)[:, None]
    centroids = _farthest(points, real, mean[:, None])
    for _ in range(clusters - 1):
        centroids = torch.cat([centroids, _farthest(points, real, centroids)], 1)
    for _ in range(steps):
        nearest = _distance(points, centroids).argmin(-1)
        member = (nearest[..., None] == torch.arange(clusters, device=points.device)) & real[..., None]
        size = member.sum(1)[..., None]
        total = member.to(points.dtype).transpose(1, 2) @ points
        centroids = torch.where(size > 0, total / size.clamp_min(1), centroids)
    return centroids


def _farthest(points: Tensor, real: Tensor, centroids: Tensor) -> Float[Tensor, "groups 1 features"]:
    distance = _distance(points, centroids).amin(-1).masked_fill(~real, -1)
    place = distance.argmax(-1)
    return points.take_along_dim(place[:, None, None], 1)


def _distance(points: Tensor, centroids: Tensor) -> Float[Tensor, "groups points clusters"]:
    """Exact differences: torch's faster formula, which it takes for more than 25 points, is not 0 between equal points."""
    return torch.cdist(points, centroids, compute_mode="donot_use_mm_for_euclid_dist")
