"""The latent student: a decoder that reads question, [begin], M latent tokens, [end], answer.

Jacobi iterations as in PCCoT (arXiv 2506.18582), which KaVa (arXiv 2510.02312) builds on: all latents are read at once, then the new
input of each is the projected last hidden state at the position *before* it (the begin marker, or the question's last token, for the
first). After T of them comes the final pass, in which the latents' K and V arise and the answer is read; with T = 0 it reads the
trained inputs as they are. After t iterations the first t latents are what sequential decoding would give (Coconut), so T ≥ M
is sequential and the trained inputs have no influence left; in general those of the last T latents have none. M = 0 is the model itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.latent.model import generation
from mtkv.latent.model.latent_tokens import (
    LatentTokens,
    embedding_width,
    load_latent_folder,
    save_latent_folder,
    table_statistics,
)


class LatentStudent(nn.Module):
    """`model`: any decoder of transformers, with adapters or without; `latent`: the small trained part.

    Training goes through `embed` (rows padded on the right, gradients through every iteration, no cache), inference
    through `generate` and `mtkv.latent.model.jacobi` (a cache of the question, refined latents behind it).
    """

    def __init__(self, model: PreTrainedModel, latent: LatentTokens) -> None:
        """Raises ValueError for latents of another width than the model's embeddings, NotImplementedError for a recurrent model."""
        super().__init__()
        if latent.width != embedding_width(model):
            raise ValueError(
                f"latents are {latent.width} wide, embeddings of {type(model).__name__} {embedding_width(model)}; "
                "use the model they were trained with"
            )
        if latent.tokens and getattr(model, "_is_stateful", False):
            raise NotImplementedError(f"{type(model).__name__}: recurrent layers keep no K and V for each latent token")
        self.model = model
        self.latent = latent.to(model.device)
        self.forward_passes = 0  # of the whole batch, in inference

    @classmethod
    def create(
        cls, model: PreTrainedModel, tokens: int, iterations: int, projection: bool = True, markers: bool = True
    ) -> Self:
        """A student that is not trained yet: latents and markers drawn like embeddings of the model."""
        latent = LatentTokens(embedding_width(model), tokens, iterations, projection, markers)
        latent.initialise(*table_statistics(model))
        return cls(model, latent)

    @property
    def slots(self) -> int:
        """Positions between question and answer: 0 for M = 0, else M and the markers."""
        return self.latent.slots

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.device

    def layout(self, question_ids: Sequence[int], answer_ids: Sequence[int]) -> tuple[list[int], int]:
        """Ids of one row with placeholders between question and answer, and the position of its first latent.

        Raises ValueError for an empty question without a begin marker: the first latent would have nothing before it.
        """
        if self.latent.iterations and not len(question_ids) + self.latent.before:
            raise ValueError("a latent row needs a question token or latent.markers: true before its first latent")
        placeholder = self.model.config.get_text_config().pad_token_id or 0
        ids = [*question_ids, *[placeholder] * self.slots, *answer_ids]
        return ids, len(question_ids) + self.latent.before

    def positions(self, latent_start: Int[Tensor, " batch"]) -> Int[Tensor, "batch M"]:
        """Positions of the latents in each row."""
        return latent_start[:, None] + torch.arange(self.latent.tokens, device=latent_start.device)

    def embed(
        self, input_ids: Int[Tensor, "batch time"], latent_start: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch time hidden"]:
        """Input embeddings of rows padded on the right, with markers and refined latents in the placeholders.

        Runs the T iterations; each reads the rows up to the last latent of the batch. No attention mask is needed: what follows a
        row's latents is never seen by them.
        """
        embeds = self.model.get_input_embeddings()(input_ids)
        if not self.slots:
            return embeds
        latents = self.positions(latent_start)
        slots = latent_start[:, None] - self.latent.before + torch.arange(self.slots, device=latent_start.device)
        own = self.latent.slot_inputs(embeds.dtype).expand(len(input_ids), -1, -1)
        embeds = _placed(embeds, slots, own)
        end = int(latents.max()) + 1
        for _ in range(self.latent.iterations):
            hidden = self.model.base_model(inputs_embeds=embeds[:, :end], use_cache=False).last_hidden_state
            before = hidden.gather(1, (latents - 1)[..., None].expand(-1, -1, hidden.shape[2]))
            embeds = _placed(embeds, latents, self.latent.next_inputs(before))
        return embeds

    generate = generation.generate
    decode_latents = generation.decode_latents
    score = generation.score

    def passes(self, said: int) -> int:
        """Forward passes, one after the other, that an answer of `said` tokens takes: KaVa's measure of cost."""
        return self.latent.iterations + said

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write an ordinary model folder plus `latent.safetensors`; the caller makes it atomic."""
        save_latent_folder(folder, self.model, self.latent, tokenizer)

    @classmethod
    def load(cls, folder: Path, **model_options: Any) -> Self:
        """The student of a folder; `model_options` go to `from_pretrained` (dtype "auto" unless given). Raises FileNotFoundError for a
        folder without latents, ValueError for one whose latents are incomplete or do not fit the model."""
        return cls(*load_latent_folder(folder, **model_options))


def _placed(
    embeds: Float[Tensor, "batch time hidden"],
    positions: Int[Tensor, "batch places"],
    values: Float[Tensor, "batch places hidden"],
) -> Float[Tensor, "batch time hidden"]:
    rows = torch.arange(len(embeds), device=embeds.device)[:, None].expand_as(positions)
    return embeds.index_put((rows, positions), values.to(embeds.dtype))
