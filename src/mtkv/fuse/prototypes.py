"""What a router compares: the student's KV of a row (query) and each teacher's KV of the same tokens (prototypes), and how alike they are.

Both must lie in the student's space. Prototypes over the whole data would be equal for all teachers, because closed-form maps share the
student's mean. The tokens of all rows of a batch come one after the other, in time order within a row; `sample [tokens]` is the row of
each. Pooling is the mean, the first token or deterministic k-means. `SIMILARITIES[name](query, prototypes)` compares over the last axis;
dot product and distance are divided by √features, so that a temperature means the same for narrow and wide KV.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def kmeans(
    points: Float[Tensor, "groups points features"], real: Bool[Tensor, "groups points"], clusters: int, steps: int = 8
) -> Float[Tensor, "groups clusters features"]:
    """Centroids after `steps` Lloyd iterations (Lloyd 1982) from a farthest-point start (Gonzalez 1985), for many small groups at once.

    `real`: the points that are no padding. The start: the point farthest from the mean, then always the point farthest from those chosen
    (ties: the first). A cluster that loses its points stays where it is, so a group with fewer distinct points than clusters repeats some
    centroids. Zeros for an empty group.
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
    """Euclidean distances from exact differences: the formula that torch uses for more than 25 points is not 0 between equal points."""
    return torch.cdist(points, centroids, compute_mode="donot_use_mm_for_euclid_dist")


def cosine(query: Tensor, prototypes: Tensor) -> Tensor:
    return F.cosine_similarity(query, prototypes, dim=-1)


def dot(query: Tensor, prototypes: Tensor) -> Tensor:
    return (query * prototypes).sum(-1) / query.shape[-1] ** 0.5


def l2(query: Tensor, prototypes: Tensor) -> Tensor:
    """Minus the root mean square difference."""
    return -(query - prototypes).norm(dim=-1) / query.shape[-1] ** 0.5


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": cosine, "dot": dot, "l2": l2}


def similarity_to_teachers(
    name: str, query: Float[Tensor, "batch *layers features"], prototypes: Float[Tensor, "batch teachers *rest"]
) -> Float[Tensor, "batch teachers *layers"]:
    """The similarity `name` of the query to each teacher's prototype `[batch, teachers, *layers, features]`, or to the most similar of its
    centroids `[batch, teachers, *layers, centroids, features]`."""
    beside = query[:, None]
    if prototypes.dim() == beside.dim() + 1:
        return SIMILARITIES[name](beside[..., None, :], prototypes).amax(-1)
    return SIMILARITIES[name](beside, prototypes)


CENTROIDS = 4
Sample = Int[Tensor, " tokens"]
Unit = Float[Tensor, "layers 2 1"]


def pool(x: Float[Tensor, "tokens ..."], sample: Sample, batch: int) -> Float[Tensor, "batch flat"]:
    """Mean over the tokens of each sample, features flattened; zeros for a sample without tokens."""
    flat = x.flatten(1)
    total = flat.new_zeros(batch, flat.shape[1]).index_add(0, sample, flat)
    count = flat.new_zeros(batch).index_add(0, sample, flat.new_ones(len(sample)))
    return total / count.clamp_min(1)[:, None]


def first(x: Float[Tensor, "tokens ..."], sample: Sample, batch: int) -> Float[Tensor, "batch flat"]:
    """The first token of each sample, features flattened; zeros for a sample without tokens."""
    place = torch.arange(len(sample), device=sample.device)
    start = torch.full((batch,), len(sample), device=sample.device).scatter_reduce(0, sample, place, "amin")
    flat = x.flatten(1)
    return torch.cat([flat, flat.new_zeros(1, flat.shape[1])])[start]


def query_of(
    kv: Float[Tensor, "tokens layers 2 width"],
    sample: Sample,
    batch: int,
    method: str = "mean",
    per_layer: bool = False,
    unit: Unit | None = None,
) -> Float[Tensor, "batch features"] | Float[Tensor, "batch layers features"]:
    """The student's side: its first token for method `cls`, else the mean. features = layers·2·width, or 2·width with `per_layer`.

    `unit`: normalisation scale of each layer and kind, by which the KV are divided.
    """
    pooled = (first if method == "cls" else pool)(kv, sample, batch).unflatten(1, kv.shape[1:])
    in_units = pooled if unit is None else pooled / unit
    return in_units.flatten(2) if per_layer else in_units.flatten(1)


def prototypes_of(
    kvs: Float[Tensor, "tokens teachers layers 2 width"],
    sample: Sample,
    batch: int,
    method: str = "mean",
    per_layer: bool = False,
    centroids: int = CENTROIDS,
    unit: Unit | None = None,
) -> Float[Tensor, "batch teachers *layers features"]:
    """The teachers' side: `[batch, teachers, (layers,) features]`; for `kmeans` `[batch, teachers, (layers,) centroids, features]`."""
    start = 3 if per_layer else 2
    if method == "kmeans":
        in_units = kvs if unit is None else kvs / unit
        return _centroids(in_units.flatten(start), sample, batch, centroids)
    pooled = POOLS[method](kvs, sample, batch).unflatten(1, kvs.shape[1:])
    return (pooled if unit is None else pooled / unit).flatten(start)


def padded(
    x: Float[Tensor, "tokens ..."], sample: Sample, batch: int
) -> tuple[Float[Tensor, "batch most ..."], Int[Tensor, " batch"]]:
    """Tokens arranged as rows `[batch, most, ...]`, padded with zeros on the right, and the number of tokens in each row."""
    count = torch.bincount(sample, minlength=batch)
    order = sample.argsort(stable=True)
    row = sample[order]
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    rows = x.new_zeros(batch, int(count.max()) if batch else 0, *x.shape[1:])
    return rows.index_put((row, place), x[order]), count


def _centroids(x: Tensor, sample: Sample, batch: int, clusters: int) -> Tensor:
    if not len(sample):
        return x.new_zeros(batch, *x.shape[1:-1], clusters, x.shape[-1])
    rows, count = padded(x, sample, batch)
    groups = rows.movedim(1, -2)
    real = (torch.arange(rows.shape[1], device=x.device) < count[:, None]).view(batch, *[1] * (x.dim() - 2), -1)
    found = kmeans(groups.flatten(0, -3), real.expand(groups.shape[:-1]).flatten(0, -2), clusters)
    return found.unflatten(0, groups.shape[:-2])


POOLS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {"mean": pool, "cls": first}
