"""Training rows with their question read once: T Jacobi iterations, the final pass and the row with its chain go on from its K and V.

Reading every row anew costs T + 2 passes over the question. The numbers, gradients included, are the same but for rounding: tokens of
the question never see what follows them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from mtkv.latent.model.generation import begun, left_aligned
from mtkv.latent.model.jacobi import placed, refine

if TYPE_CHECKING:
    from mtkv.latent.model.student import LatentStudent


def can_reuse(student: "LatentStudent") -> bool:
    """Whether there are iterations to save and the model keeps a cache while it is trained (gradient checkpointing turns it off)."""
    return bool(student.latent.iterations) and not getattr(student.model, "is_activation_checkpointing", False)


@dataclass(frozen=True)
class ReadQuestions:
    """Questions of a batch and their begin marker as the model has read them: all end in the same column, `seen` is 0 before them."""

    student: "LatentStudent"
    cache: DynamicCache
    seen: Int[Tensor, "batch columns"]
    latents: Float[Tensor, "batch M hidden"]

    def answer_inputs(
        self, input_ids: Int[Tensor, "batch time"], latent_start: Int[Tensor, " batch"]
    ) -> dict[str, Any]:
        """Arguments of the model's forward for the final pass over latents, end marker and answer: column 0 is each first latent.

        They use up the cache: `chain_inputs` comes before.
        """
        latent = self.student.latent
        tail = since(input_ids, latent_start, 0)
        answer = self.student.model.get_input_embeddings()(tail[:, latent.slots - latent.before :])
        end = latent.slot_inputs(answer.dtype)[latent.before + latent.tokens :].expand(len(tail), -1, -1)
        inputs = torch.cat([self.latents, end, answer], dim=1)
        return {"inputs_embeds": inputs, **self._behind(self.cache, 0, tail.shape[1])}

    def chain_inputs(self, input_ids: Int[Tensor, "batch time"], chain_start: Int[Tensor, " batch"]) -> dict[str, Any]:
        """As `answer_inputs`, for rows with their chain as text: column 0 is the question's last token (it predicts the chain's first)."""
        tail = since(input_ids, chain_start - 1, 0)
        drop = self.student.latent.before + 1
        cache = DynamicCache()
        layers: list[Any] = self.cache.layers
        for number, layer in enumerate(layers):
            cache.update(layer.keys[:, :, :-drop], layer.values[:, :, :-drop], number)
        return {"input_ids": tail, **self._behind(cache, drop, tail.shape[1])}

    def _behind(self, cache: DynamicCache, drop: int, columns: int) -> dict[str, Any]:
        """Mask, cache and positions for reading `columns` more tokens behind all columns but the last `drop`."""
        before = self.seen[:, : self.seen.shape[1] - drop]
        seen = F.pad(before, (0, columns), value=1)  # padding on the right is seen by padding alone
        positions = before.sum(1, keepdim=True) + torch.arange(columns, device=seen.device)
        place = placed(self.student, positions)
        return {"attention_mask": seen, "past_key_values": cache, "use_cache": True, **place}


def read_questions(
    student: "LatentStudent", input_ids: Int[Tensor, "batch time"], latent_start: Int[Tensor, " batch"]
) -> ReadQuestions:
    """Read the questions of rows padded on the right and refine their latents; for students with one iteration or more."""
    length = latent_start - student.latent.before
    ids = input_ids[:, : int(length.max())]
    mask = (torch.arange(ids.shape[1], device=ids.device) < length[:, None]).to(ids.dtype)
    embeds, seen, positions, cache = begun(student, *left_aligned(ids, mask))
    latents, _ = refine(student, embeds, seen, positions, cache)
    return ReadQuestions(student, cache, seen, latents)


def since(values: Int[Tensor, "batch time"], start: Int[Tensor, " batch"], fill: int) -> Int[Tensor, "batch columns"]:
    """Each row from its own `start` on, up to the longest rest; `fill` behind the end."""
    time = values.shape[1]
    place = start[:, None] + torch.arange(time - int(start.min()), device=values.device)
    return values.gather(1, place.clamp(max=time - 1)).masked_fill(place >= time, fill)
