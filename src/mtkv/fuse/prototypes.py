"""What a router compares: the student's KV of a row (query) and each teacher's KV of the same row (prototypes), over the same tokens.

Both must lie in the student's space. Prototypes over the whole data would be equal for all teachers, because closed-form maps share the
student's mean. Tokens of all rows of a batch lie one after the other, in time order within a row; `sample` says whose each is.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtkv.fuse.kmeans import kmeans

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
    """The student's side: its first token for `cls`, its mean otherwise. `features` is layers·2·width, or 2·width `per_layer`.

    `unit`: what each layer and kind is measured in.
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
    """Tokens sorted into rows `[batch, most, ...]`, zeros behind, and how many each row has."""
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
