"""Entropy regulariser on routing weights (method.md §7): γ·H pushes towards one teacher, −γ·H towards all of them."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

SIGN = {"specialized": 1.0, "diverse": -1.0}


def entropy(weights: Float[Tensor, "batch teachers *layers"]) -> Float[Tensor, ""]:
    """Mean Shannon entropy over teachers, in nats; 0·log 0 is 0."""
    return -(weights * weights.clamp_min(1e-12).log()).sum(1).mean()


def entropy_loss(weights: Float[Tensor, "batch teachers *layers"], target: str, strength: float) -> Float[Tensor, ""]:
    """±γ·H: to be added to the loss. `target` is `specialized` or `diverse`."""
    return SIGN[target] * strength * entropy(weights)


@dataclass(frozen=True)
class EntropyRegularizer:
    """`entropy_loss` with its settings: `EntropyRegularizer("specialized", 0.01).compute_loss(weights)`.

    Raises ValueError for an unknown target or a negative strength (which would turn the target into its opposite).
    """

    target: str = "specialized"
    strength: float = 0.01

    def __post_init__(self) -> None:
        if self.target not in SIGN:
            raise ValueError(f"entropy target {self.target!r} is unknown; there are {', '.join(SIGN)}")
        if self.strength < 0:
            raise ValueError(f"entropy strength {self.strength} is negative; choose the other target instead")

    def compute_loss(self, weights: Float[Tensor, "batch teachers *layers"]) -> Float[Tensor, ""]:
        return entropy_loss(weights, self.target, self.strength)
