"""Jacobi iteration at inference, with a KV cache: question and begin marker are read once, then only the latents, T − 1 times.

`refine` gives what `LatentStudent.embed` gives in training (PCCoT, arXiv 2506.18582). The mask says who is seen, in transformers' two
forms: `[batch, seen]` of 0 and 1, or `[batch, 1, time, seen]` to be added to the scores; `seen` begins with what the cache holds.
"""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

if TYPE_CHECKING:
    from mtkv.latent.model.student import LatentStudent


def refine(
    student: "LatentStudent",
    embeds: Float[Tensor, "batch time hidden"],
    mask: Tensor,
    positions: Int[Tensor, "batch time"],
    cache: DynamicCache,
) -> tuple[Float[Tensor, "batch M hidden"], int]:
    """Refined inputs of the latents that follow `embeds` (question and begin marker, padded on the left), and how much of `embeds`
    was read into the cache: all of it, or with T = 0 nothing.

    `student.forward_passes` counts the T passes. Raises ValueError when nothing stands before the first latent.
    """
    latent, time = student.latent, embeds.shape[1]
    inputs = latent.latents.to(embeds.dtype).expand(len(embeds), -1, -1)
    if not latent.iterations:
        return inputs, 0
    if not time:
        raise ValueError("the token before the first latent must be read together with the latents")
    mask, positions = followed(mask, positions, latent.tokens)
    hidden = run(student, torch.cat([embeds, inputs], dim=1), mask, positions, cache)
    first = hidden[:, time - 1 : time]  # what stands before the latents does not change with them
    own = hidden[:, time:]
    for _ in range(latent.iterations - 1):
        inputs = latent.next_inputs(torch.cat([first, own[:, :-1]], dim=1))
        own = run(student, inputs, mask, positions, cache)
    return latent.next_inputs(torch.cat([first, own[:, :-1]], dim=1)), time


def run(
    student: "LatentStudent", embeds: Float[Tensor, "batch time hidden"], mask: Tensor, positions: Tensor, cache: Any
) -> Float[Tensor, "batch time hidden"]:
    """Last hidden states of one pass over the last columns; the latents at its end leave the cache again."""
    student.forward_passes += 1
    columns = embeds.shape[1]
    hidden: Tensor = student.model.base_model(
        inputs_embeds=embeds,
        attention_mask=mask if mask.ndim == 2 else mask[:, :, -columns:],
        past_key_values=cache,
        use_cache=True,
        **placed(student, positions[:, -columns:]),
    ).last_hidden_state
    cache.crop(-student.latent.tokens)
    return hidden


def placed(student: "LatentStudent", positions: Int[Tensor, "batch time"]) -> dict[str, Tensor]:
    """`position_ids` for models that take them; the others (ALiBi) go by the mask."""
    takes = "position_ids" in inspect.signature(student.model.base_model.forward).parameters
    return {"position_ids": positions} if takes else {}


def followed(mask: Tensor, positions: Int[Tensor, "batch time"], tokens: int) -> tuple[Tensor, Tensor]:
    """Mask and positions when `tokens` more come behind: each sees what the last column sees, itself and those before it."""
    more = positions[:, -1:] + torch.arange(1, tokens + 1, device=positions.device)
    positions = torch.cat([positions, more], dim=1)
    if mask.ndim == 2:
        return F.pad(mask, (0, tokens), value=1), positions
    hidden = torch.finfo(mask.dtype).min
    mask = F.pad(mask, (0, tokens), value=hidden)
    own = mask[:, :, -1:].repeat(1, 1, tokens, 1)
    own[..., -tokens:] = torch.full((tokens, tokens), hidden, dtype=mask.dtype, device=mask.device).triu(1)
    return torch.cat([mask, own], dim=2), positions
