"""How alike a query and the teachers' prototypes are: `SIMILARITIES[name](query, prototypes)`, over the last axis.

Dot product and distance are divided by √features, so that a temperature means the same for narrow and wide KV.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


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
    """`prototypes [batch, teachers, *layers, features]`, or `[batch, teachers, *layers, centroids, features]`: then the most similar
    centroid counts."""
    beside = query[:, None]
    if prototypes.dim() == beside.dim() + 1:
        return SIMILARITIES[name](beside[..., None, :], prototypes).amax(-1)
    return SIMILARITIES[name](beside, prototypes)
