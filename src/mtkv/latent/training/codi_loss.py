"""CODI's distance between the pass that reads the chain and the pass that reads latents (arXiv 2502.21074, section 3).

Both are looked at where the answer is about to be said, at the token before its value (`LatentRow.value`): if the latents hold what the
chain says, the model's state there is the same.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mtkv.training.step_statistics import mean_of_step

Hidden = Float[Tensor, "batch time hidden"]
SMALLEST_SPREAD = 1e-6


def states_at(hidden: Sequence[Hidden], position: Int[Tensor, " batch"]) -> list[Float[Tensor, "batch hidden"]]:
    """Output of every layer at one position of each row; the first of transformers' `hidden_states`, the embeddings, left out."""
    row = torch.arange(len(position), device=position.device)
    return [layer[row, position] for layer in hidden[1:]]


def codi_loss(
    student: Sequence[Float[Tensor, "batch hidden"]], teacher: Sequence[Float[Tensor, "batch hidden"]]
) -> Float[Tensor, ""]:
    """smooth_l1(a, b) / std(b) of each layer, mean over elements and layers; std over the step's rows and hidden, unbiased, of the
    teacher b, which gets no gradient.

    As CODI's code (zhenyi4/codi, `distill_loss_div_std`) and PCCoT's (whyNLP/PCCoT) have it, so that a weight means the same. Of the
    layers those of PCCoT: CODI also counts the embeddings, which are equal in both passes but for learned positions.
    """
    found = []
    for own, other, spread in zip(student, teacher, spreads(teacher), strict=True):
        found.append(F.smooth_l1_loss(own.float(), other.detach().float()) / spread)
    return torch.stack(found).mean()


def spreads(states: Sequence[Float[Tensor, "batch hidden"]]) -> list[Float[Tensor, ""]]:
    """Unbiased standard deviation of each layer over all rows of the step."""
    found = []
    for layer, x in enumerate(states):
        mean, count = mean_of_step(f"codi {layer}", x.double(), (0, 1))
        square, _ = mean_of_step(f"codi {layer}, squared", x.double().square(), (0, 1))
        variance = (square - mean.square()) * count / (count - 1)
        found.append(variance.clamp_min(SMALLEST_SPREAD**2).sqrt().float())
    return found
