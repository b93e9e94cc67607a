"""Entropy regulariser on routing weights (method.md §7): γ·H pushes towards one teacher, −γ·H towards all of them."""

from jaxtyping import Float
from torch import Tensor

SIGN = {"specialized": 1.0, "diverse": -1.0}


def entropy(weights: Float[Tensor, "batch teachers"]) -> Float[Tensor, ""]:
    """Mean Shannon entropy of the rows, in nats; 0·log 0 is 0."""
    return -(weights * weights.clamp_min(1e-12).log()).sum(-1).mean()


def entropy_loss(weights: Float[Tensor, "batch teachers"], target: str, strength: float) -> Float[Tensor, ""]:
    """±γ·H: to be added to the loss. `target` is `specialized` or `diverse`."""
    return SIGN[target] * strength * entropy(weights)
