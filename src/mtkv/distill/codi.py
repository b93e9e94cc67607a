"""CODI's distance between the pass that reads the chain and the pass that reads latents (arXiv 2502.21074, section 3).

Both are looked at where the answer is about to be said, at the token before its value (the ":" of "Answer:"): if the latents hold what
the chain says, the model's state there is the same.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Hidden = Float[Tensor, "batch time hidden"]
SMALLEST_SPREAD = 1e-6


def states_at(hidden: Sequence[Hidden], position: Int[Tensor, " batch"]) -> list[Float[Tensor, "batch hidden"]]:
    """Output of every layer at one position of each row; the first of transformers' `hidden_states`, the embeddings, left out."""
    row = torch.arange(len(position), device=position.device)
    return [layer[row, position] for layer in hidden[1:]]


def codi_loss(
    student: Sequence[Float[Tensor, "batch hidden"]], teacher: Sequence[Float[Tensor, "batch hidden"]]
) -> Float[Tensor, ""]:
    """Smooth L1 between both, divided by the standard deviation of the teacher's layer, mean over elements and layers.

    The teacher gets no gradient.
    """
    found = []
    for own, other in zip(student, teacher, strict=True):
        target = other.detach().float()
        spread = target.std(correction=0).clamp_min(SMALLEST_SPREAD)
        found.append(F.smooth_l1_loss(own.float() / spread, target / spread))
    return torch.stack(found).mean()
