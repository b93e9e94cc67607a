"""Fuse whole KVs, under the names of the original design: `[batch, heads, time, head_dim]`, or (k, v), or one such pair per layer.

The KV of every teacher (any number of them) must already be in the student's space, with the same structure and shapes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtkv.fuse.prototypes import CENTROIDS, kmeans, similarity_to_teachers

KV = Any  # a tensor [batch, heads, time, head_dim] or a nested list or tuple of them
WEIGHT_TOLERANCE = 1e-6


def compute_multi_teacher_prototypes(
    teacher_kvs_list: Sequence[KV], method: str = "mean"
) -> Float[Tensor, "batch teachers features"]:
    """`mean` over time, `cls` (first position) or `kmeans` (`[batch, teachers, centroids, features]`, 4 centroids over time).

    `features` is heads·head_dim, times the number of tensors in a teacher's KV (2 for (k, v)). Teachers may differ in time.
    Raises ValueError for an unknown method or teachers of different width.
    """
    if method not in SUMMARIES:
        raise ValueError(f"prototype method {method!r} is unknown; there are {', '.join(SUMMARIES)}")
    found = [SUMMARIES[method](_over_time(kv)) for kv in teacher_kvs_list]
    if len({prototype.shape for prototype in found}) != 1:
        shapes = [list(prototype.shape) for prototype in found]
        raise ValueError(f"prototypes of shapes {shapes}: bring the teachers to one width first (mtkv.align)")
    return torch.stack(found, 1)


def compute_routing_weights(
    student_hidden: Tensor, prototypes: Tensor, temperature: float = 1.0, similarity: str = "cosine"
) -> Float[Tensor, "batch teachers"]:
    """softmax(sim(student, prototypeᵢ) / τ).

    `student_hidden`: `[batch, features]`, `[batch, time, features]` or the student's own KV (then the mean over time counts).
    Raises ValueError when its features are not those of the prototypes, or τ is not positive.
    """
    query = _query(student_hidden)
    if query.shape[-1] != prototypes.shape[-1]:
        raise ValueError(
            f"the query has {query.shape[-1]} features, the prototypes {prototypes.shape[-1]}: compare in one space"
        )
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not positive")
    return (similarity_to_teachers(similarity, query, prototypes) / temperature).softmax(1)


def fuse_kvs_fixed(kvs_list: Sequence[KV], weights: Sequence[float] | None = None) -> KV:
    """Σᵢ wᵢ·KVᵢ; equal weights when None. Raises ValueError unless there is one weight ≥ 0 per teacher and they sum to 1."""
    if not kvs_list:
        raise ValueError("no teacher's KV given")
    given = [1 / len(kvs_list)] * len(kvs_list) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(kvs_list):
        raise ValueError(f"{len(given)} weights for {len(kvs_list)} teachers")
    if not all(weight >= 0 for weight in given) or abs(math.fsum(given) - 1) > WEIGHT_TOLERANCE:
        raise ValueError(f"weights {given} are not all ≥ 0 with sum 1 (their sum is {math.fsum(given):.6g})")
    return _combine(kvs_list, torch.tensor([given]))


def fuse_kvs_similarity(
    kvs_list: Sequence[KV], query: Tensor, prototypes: Tensor, temperature: float = 1.0, similarity: str = "cosine"
) -> tuple[KV, Float[Tensor, "batch teachers"]]:
    """Fused KV and the weights of `compute_routing_weights`."""
    weights = compute_routing_weights(query, prototypes, temperature, similarity)
    return _combine(kvs_list, weights), weights


def fuse_kvs_learnable(
    kvs_list: Sequence[KV], query: Tensor, router: nn.Module, prototypes: Tensor | None = None
) -> tuple[KV, Float[Tensor, "batch teachers"]]:
    """Fused KV and the weights of a trained router (`LearnableRouter`); its gradient flows through both."""
    weights = router(_query(query), prototypes)
    return _combine(kvs_list, weights), weights


def _combine(kvs: Sequence[KV], weights: Float[Tensor, "batch teachers"]) -> KV:
    if weights.shape[1] != len(kvs):
        raise ValueError(f"weights for {weights.shape[1]} teachers, KV of {len(kvs)}")
    if not isinstance(kvs[0], Tensor):
        return type(kvs[0])([_combine(parts, weights) for parts in zip(*kvs, strict=True)])
    if len({kv.shape for kv in kvs}) != 1:
        raise ValueError(
            f"KV of shapes {[list(kv.shape) for kv in kvs]}: bring the teachers to one shape first (mtkv.align)"
        )
    stacked = torch.stack(list(kvs), 1)
    return (weights.to(stacked).reshape(*weights.shape, *[1] * (stacked.dim() - 2)) * stacked).sum(1)


def _query(x: KV) -> Float[Tensor, "batch features"]:
    if isinstance(x, Tensor) and x.dim() < 4:
        return x.mean(1) if x.dim() == 3 else x
    return _over_time(x).mean(1)


def _over_time(kv: KV) -> Float[Tensor, "batch time features"]:
    if isinstance(kv, Tensor):
        return kv.transpose(1, 2).flatten(2)
    return torch.cat([_over_time(part) for part in kv], -1)


def _centroids(x: Tensor) -> Tensor:
    return kmeans(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device), CENTROIDS)


SUMMARIES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(1),
    "cls": lambda x: x[:, 0],
    "kmeans": _centroids,
}
