"""The fused KV: Σᵢ αᵢ·KVᵢ (method.md §7)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def fuse(
    kvs: Float[Tensor, "tokens teachers ..."],
    weights: Float[Tensor, "batch teachers"] | Float[Tensor, "batch teachers layers"],
    sample: Int[Tensor, " tokens"],
) -> Float[Tensor, "tokens ..."]:
    """Σᵢ αᵢ·KVᵢ with the weights of the sample each token belongs to.

    Weights per layer need `kvs [tokens, teachers, layers, ...]`.
    """
    equation = "nt,nt...->n..." if weights.dim() == 2 else "ntl,ntl...->nl..."
    return torch.einsum(equation, weights[sample], kvs)
