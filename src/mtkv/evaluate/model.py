"""A causal language model behind lm-eval's interface, strict where lm-eval is lenient.

lm-eval cuts prompts that are too long from the left and warns; here that is an error. Answers are lm-eval's, found with less work: see
`choices` and `decode`. What was computed is counted: forward passes and generated tokens.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, postprocess_generated_text
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mtkv.evaluate.choices import Question, Score, score_choices
from mtkv.evaluate.continuations import cut_texts
from mtkv.evaluate.decode import generate
from mtkv.evaluate.greedy import ends, is_greedy, next_tokens
from mtkv.evaluate.memory import halved
from mtkv.evaluate.room import check_room
from mtkv.evaluate.shared import can_share


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

        Each context is read once for all its continuations, where the model allows that (`can_share`), else by lm-eval's own loop.
        """
        texts = cut_texts([(context, continuation) for context, continuation in _arguments(requests)], self._encode)
        longest = max(len(text.context) + len(text.continuation) for text in texts)
        check_room(self.max_length, longest - 1)  # the last token is scored but never read
        if not can_share(self.model, longest):
            pairs = [(text.given, list(text.context), list(text.continuation)) for text in texts]
            return self._halving(partial(self._loglikelihood_tokens, pairs, True))
        places: dict[tuple[int, ...], list[int]] = {}
        for place, text in enumerate(texts):
            places.setdefault(text.context, []).append(place)
        questions = [
            Question(context, tuple(texts[place].continuation for place in own)) for context, own in places.items()
        ]
        with torch.inference_mode():
            scores = score_choices(self.model, self._forward, questions, self.batch_size)
        found: dict[int, Score] = {}
        for own, of_question in zip(places.values(), scores, strict=True):
            found |= dict(zip(own, of_question, strict=True))
        return [found[place] for place in range(len(texts))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Continuation of each prompt up to its stop text or eos, the greedy one.

        An answer is what lm-eval gives in batches of one: in larger ones it goes on behind a stop text that is a special token,
        until the whole batch has met it.
        """
        texts = _arguments(requests)
        encoded = dict(zip((text for text, _ in texts), self._encode([text for text, _ in texts]), strict=True))
        said: dict[int, str] = {}
        by_settings: dict[str, list[int]] = {}
        for place, (_, settings) in enumerate(texts):
            by_settings.setdefault(json.dumps(settings, sort_keys=True), []).append(place)
        for places in by_settings.values():
            ids, settings = [encoded[texts[place][0]] for place in places], texts[places[0]][1]
            check_room(self.max_length, max(map(len, ids)), settings["max_gen_toks"])
            if not (is_greedy(self.model, settings) and can_share(self.model, 1)):
                found = self._halving(partial(super().generate_until, [requests[place] for place in places], True))
            else:
                found = self._generate(ids, settings)
            said |= dict(zip(places, found, strict=True))
        return [said[place] for place in range(len(texts))]

    def _generate(self, prompts: list[list[int]], settings: dict[str, Any]) -> list[str]:
        limit, eos = settings["max_gen_toks"], self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        until = settings.get("until")
        stops = handle_stop_sequences(list(until) if isinstance(until, list) else until, eos=eos)
        with torch.inference_mode():
            new = generate(
                self.model,
                self._forward,
                prompts,
                self.batch_size,
                limit,
                next_tokens(self.model),
                ends(self.model, self.tokenizer, stops),
                share=can_share(self.model, max(map(len, prompts)) + limit),
            )
        self.generated_tokens += sum(map(len, new))
        return [postprocess_generated_text(self.tok_decode(ids), stops, None) for ids in new]

    def _halving(self, work: Callable[[], list[Any]]) -> list[Any]:
        """lm-eval's own loop, begun again with half the batch whenever memory runs out."""
        while True:
            try:
                return work()
            except RuntimeError as error:
                self.batch_size_per_gpu: int = halved(self.batch_size, error)

    def _forward(self, **inputs: Any) -> Any:
        self.forward_passes += 1
        return self.model(**inputs)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids as lm-eval's `tok_encode` gives them: a text that begins with bos, as chat templates write it, gets no other."""
        bos = self.tokenizer.bos_token
        special = {"add_special_tokens": False} if bos and texts and texts[0].startswith(bos) else {}
        return self.tokenizer(texts, **special)["input_ids"]

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
