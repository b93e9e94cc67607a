"""A latent student behind lm-eval's interface: every context is followed by its latents, then the answer is said or a choice is scored.

A prompt gets ids of its own for begin marker, latents and end marker (`BEGIN`, `LATENT`, `END`); `_forward`, through which all of the
text model's reading goes, refines the latents where it meets them. So batches, shared beginnings, choices read at once and what happens
when memory runs out are those of `EvaluationModel`. Models it leaves to lm-eval's own loop go through `LatentStudent.generate` and
`score`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, PreTrainedTokenizerBase

from mtkv.evaluate.batch_size import in_batches, rows_to_read
from mtkv.evaluate.generation import Choose, GeneratedAnswer, checked
from mtkv.evaluate.lm_eval_model import EvaluationModel
from mtkv.evaluate.loglikelihood import Cut, Score
from mtkv.latent.model.interventions import Intervention
from mtkv.latent.model.jacobi import refine
from mtkv.latent.model.student import LatentStudent

BEGIN, LATENT, END = -3, -2, -1  # no token has these ids


class LatentEvaluationModel(EvaluationModel):
    """`EvaluationModel` of a latent student. `intervene` changes the refined latents of every question."""

    def __init__(
        self,
        student: LatentStudent,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        intervene: Intervention | None = None,
        chat: bool = False,
    ) -> None:
        super().__init__(student.model, tokenizer, batch_size, chat)
        self.student, self.intervene = student, intervene
        self.passes_before_answer = student.latent.iterations

    def _prompt(self, ids: list[int], text: str) -> list[int]:
        latent = self.student.latent
        kept = latent.tokens if self.intervene is None else self.intervene.kept(latent.tokens)
        return [*ids, *[BEGIN] * latent.before, *[LATENT] * kept, *[END] * latent.markers]

    def _can_share(self, longest: int) -> bool:
        """Without markers the question's last token is read with the latents, so it may not be part of a beginning."""
        return self.student.latent.markers and super()._can_share(longest)

    def _choose(self) -> Choose:
        choose = super()._choose()

        def among_tokens(logits: Tensor, answers: Sequence[GeneratedAnswer]) -> list[int]:
            read = [
                GeneratedAnswer([token for token in answer.prompt if token >= 0], answer.said) for answer in answers
            ]
            return choose(logits, read)

        return among_tokens

    def _forward(self, **inputs: Any) -> Any:
        ids: Int[Tensor, "rows time"] = inputs.pop("input_ids")
        if not bool((ids < 0).any()):
            return super()._forward(input_ids=ids, **inputs)
        student, kinds, rows = self.student, _kinds(ids), len(ids)
        cache: DynamicCache = inputs["past_key_values"]
        past = cache.get_seq_length()
        mask, positions = inputs.pop("attention_mask", None), inputs.pop("position_ids", None)
        mask = torch.ones(rows, past + len(kinds), dtype=torch.long, device=ids.device) if mask is None else mask
        positions = (
            past + torch.arange(len(kinds), device=ids.device).expand(rows, -1) if positions is None else positions
        )
        embeds = self._embeds(ids, kinds)
        read = 0
        if BEGIN in kinds or LATENT in kinds:
            first = kinds.index(BEGIN) + 1 if BEGIN in kinds else kinds.index(LATENT)
            passes = student.forward_passes
            latents, read = refine(student, embeds[:, :first], _until(mask, first, past), positions[:, :first], cache)
            self.forward_passes += student.forward_passes - passes
            latents = latents if self.intervene is None else self.intervene(latents)
            embeds[:, first : first + latents.shape[1]] = latents
        if read == len(kinds):
            read -= 1  # nothing was left behind the question, and something must be read
            cache.crop(-1)
        keep = inputs.pop("logits_to_keep")
        return super()._forward(
            inputs_embeds=embeds[:, read:],
            attention_mask=mask if mask.ndim == 2 else mask[:, :, read:],
            position_ids=positions[:, read:],
            logits_to_keep=keep if isinstance(keep, int) else keep - read,
            **inputs,
        )

    def _embeds(self, ids: Int[Tensor, "rows time"], kinds: list[int]) -> Float[Tensor, "rows time hidden"]:
        """Embeddings of tokens and markers; those of latents are filled in later."""
        embeds: Tensor = self.model.get_input_embeddings()(ids.clamp(min=0))
        own = self.student.latent.slot_inputs(embeds.dtype)
        for kind, value in ((BEGIN, own[0]), (END, own[-1])):
            if kind in kinds:
                embeds[:, kinds.index(kind)] = value
        return embeds

    def _score_each(self, texts: Sequence[Cut]) -> list[Score]:
        if self.intervene is not None:
            raise NotImplementedError(
                f"{type(self.model).__name__}: interventions on scored choices need plain attention over the whole text "
                "(attn_implementation sdpa or eager, no sliding window shorter than it) and latents with markers"
            )
        scores: dict[int, Score] = {}

        def work(places: Sequence[int]) -> None:
            batch = [texts[place] for place in places]
            passes = self.student.forward_passes
            found = self.student.score([text.context for text in batch], [text.continuation for text in batch])
            self.forward_passes += self.student.forward_passes - passes
            scores.update(zip(places, found, strict=True))

        lengths = [len(self._prompt(list(text.context), text.given[0])) + len(text.continuation) for text in texts]
        order = sorted(range(len(texts)), key=lambda place: -lengths[place])
        longest_said = max(len(text.continuation) for text in texts)
        in_batches(order, rows_to_read(self.model, self.batch_size, max(lengths), longest_said), work)
        return [scores[place] for place in range(len(texts))]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        """Replaces lm-eval's: whole sequences, context and new tokens, with the latents read between them but left out here."""
        if generation_kwargs.get("temperature", 0.0) == 0.0 and not generation_kwargs.get("do_sample"):
            generation_kwargs = {name: value for name, value in generation_kwargs.items() if name != "temperature"}
            generation_kwargs["do_sample"] = False
        passes = self.student.forward_passes
        new = self.student.generate(
            context,
            intervene=self.intervene,
            max_new_tokens=max_length - context.shape[1],
            stopping_criteria=stop_sequences_criteria(self.tokenizer, stop, context.shape[1], len(context)),
            pad_token_id=self.tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([checked]),
            **generation_kwargs,
        )
        self.forward_passes += self.student.forward_passes - passes
        self._count((new != self.tokenizer.pad_token_id).sum(1).tolist())
        return torch.cat([context, new], dim=1)


def _kinds(ids: Int[Tensor, "rows time"]) -> list[int]:
    """What each column holds: BEGIN, LATENT, END or 0 for tokens. Raises ValueError when rows differ: prompts end in one column."""
    kinds = ids.clamp(max=0)
    if not bool((kinds == kinds[:1]).all()):
        raise ValueError("prompts with latents must end in the same column")
    found: list[int] = kinds[0].tolist()
    return found


def _until(mask: Tensor, columns: int, past: int) -> Tensor:
    """The mask of the first columns, which see what the cache holds and each other."""
    return mask[:, : past + columns] if mask.ndim == 2 else mask[:, :, :columns, : past + columns]
