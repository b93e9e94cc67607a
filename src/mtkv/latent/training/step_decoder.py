"""SIM-CoT's second decoder (arXiv 2509.20317): it says from each latent its part of the chain, so that latents cannot become all alike.

It starts as a copy of the student, is trained beside it and thrown away: what is saved and asked has none. There each latent has one step
of the chain; here the chain's tokens are cut into M contiguous pieces of nearly equal length, since a chain may have fewer steps than
there are latents. A chain of fewer than M tokens leaves the last latents out. What it reads of a latent is the last hidden state there
in the final pass, projected as one more iteration would.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from mtkv.models.cross_entropy import IGNORED_LABEL
from mtkv.models.tokenization import NOT_A_BOUNDARY
from mtkv.training.data_parallel import LossTerm

if TYPE_CHECKING:
    from mtkv.latent.training.dataset import LatentRow

STEP_CE = LossTerm("step_ce", "step_targets")


def chain_pieces(trace: "LatentRow", chain_end: int, count: int) -> list[np.ndarray]:
    """Token ids of the chain, which ends at byte `chain_end` of a row read with it, in at most `count` pieces; none without a chain."""
    ends = np.flatnonzero((trace.byte_end != NOT_A_BOUNDARY) & (trace.byte_end <= chain_end))
    chain = trace.input_ids[trace.latent_start : ends.max(initial=-1) + 1]
    return np.array_split(chain, min(count, len(chain))) if len(chain) and count else []


class StepDecoder(nn.Module):
    """A copy of the student that reads one latent and goes on with its piece of the chain."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = deepcopy(model)

    def forward(self, latents: Float[Tensor, "pieces hidden"], labels: Int[Tensor, "pieces time"]) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats of the pieces' tokens, each after its latent and the tokens before it; 0 where there are none.

        `labels`: ids, padded on the right with `IGNORED_LABEL`.
        """
        if not len(labels):
            return 0.0 * (latents.sum() + sum(parameter.sum() for parameter in self.parameters()))
        said = self.model.get_input_embeddings()(labels[:, :-1].clamp(min=0))
        embeds = torch.cat([latents[:, None].to(said.dtype), said], dim=1)
        logits = self.model(inputs_embeds=embeds, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL)


@contextmanager
def last_hidden_states(model: PreTrainedModel) -> Iterator[list[Float[Tensor, "batch time hidden"]]]:
    """What the base model of `model` returns last at each forward pass inside, one entry each."""
    found: list[Tensor] = []
    hook = model.base_model.register_forward_hook(lambda _module, _inputs, output: found.append(output[0]))
    try:
        yield found
    finally:
        hook.remove()
