"""A causal language model behind lm-eval's interface, strict where lm-eval is lenient.

lm-eval cuts prompts that are too long from the left and warns; here that is an error. It may also cut a continuation where
a tokenizer merges it with its prompt; here it doesn't. What was computed is counted: forward passes and generated tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mtkv.evaluate.tasks import UnanswerableError


def load_folder(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (as saved, on the GPU when there is one) and tokenizer of a Hugging Face folder."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True, device_map=device)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


class EvaluationModel(HFLM):
    """`HFLM` that refuses to truncate, is quiet and counts."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        """Raises ValueError for a model without an eos id in its generation config: its answers would never end."""
        if model.generation_config is None or model.generation_config.eos_token_id is None:
            raise ValueError(f"{model.name_or_path}: generation_config has no eos_token_id, generation would not stop")
        # In half precision the log-likelihoods of different choices would often round to the same number.
        super().__init__(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, softmax_dtype="float32"
        )
        self.forward_passes = 0
        self.generated_tokens = 0

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether it is the greedy one.

        All continuations of one context are scored from the same token on. lm-eval cuts after as many tokens as the
        context has alone; where a tokenizer merges the context's last character with a continuation ("：" and "北" into
        "：北"), that would drop part of the continuation.
        """
        texts = _arguments(requests)
        wholes = self._encode([context + continuation for context, continuation in texts])
        self._check_room(wholes, room=-1)  # the last token is scored but never read
        contexts = list(dict.fromkeys(context for context, _ in texts))
        alone = dict(zip(contexts, self._encode(contexts), strict=True))
        start = {context: len(ids) for context, ids in alone.items()}
        for (context, _), whole in zip(texts, wholes, strict=True):
            start[context] = min(start[context], _common_length(alone[context], whole))
        pairs = [
            (text, whole[: start[text[0]]], whole[start[text[0]] :]) for text, whole in zip(texts, wholes, strict=True)
        ]
        return self._loglikelihood_tokens(pairs, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Continuation of each prompt up to its stop text or eos."""
        for room in {settings["max_gen_toks"] for _, settings in _arguments(requests)}:
            self._check_room(
                self._encode([text for text, own in _arguments(requests) if own["max_gen_toks"] == room]), room
            )
        return super().generate_until(requests, disable_tqdm=True)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids as lm-eval's `tok_encode` gives them: a text that begins with bos, as chat templates write it, gets no other."""
        bos = self.tokenizer.bos_token
        special = {"add_special_tokens": False} if bos and texts and texts[0].startswith(bos) else {}
        return self.tokenizer(texts, **special)["input_ids"]

    def _check_room(self, encoded: list[list[int]], room: int) -> None:
        longest = max(len(ids) for ids in encoded)
        if longest + room > self.max_length:
            raise UnanswerableError(
                f"the longest text has {longest} tokens; with {max(room, 0)} new ones that is more than the model's "
                f"context of {self.max_length}: lower evaluation.max_new_tokens or evaluation.num_fewshot"
            )

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        self.forward_passes += 1
        return super()._model_call(inps, attn_mask, labels)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        sequences = super()._model_generate(context, max_length, stop, **generation_kwargs)
        new = sequences[:, context.shape[1] :]
        self.forward_passes += new.shape[1]
        self.generated_tokens += int((new != self.tokenizer.pad_token_id).sum())
        return sequences


def _arguments(requests: Sequence[Instance]) -> list[tuple[Any, ...]]:
    return [request.args for request in requests]


def _common_length(first: list[int], second: list[int]) -> int:
    """Number of leading tokens two texts share."""
    differing = (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differing, min(len(first), len(second)))
