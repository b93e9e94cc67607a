"""A causal language model behind lm-eval's interface, strict where lm-eval is lenient.

lm-eval cuts prompts that are too long from the left and warns; here that is an error. Answers are lm-eval's, found with less work: see
`mtkv.evaluate.loglikelihood` and `mtkv.evaluate.generation`. What was computed is counted: forward passes and generated tokens.
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
from transformers import AutoConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from mtkv.evaluate.batch_size import check_room, halved
from mtkv.evaluate.generation import Choose, GreedyDecoder, checked, ends, is_greedy, next_tokens
from mtkv.evaluate.journal import Journal, in_chunks
from mtkv.evaluate.loglikelihood import ChoiceQuestion, Cut, Score, cut_texts, score_choices
from mtkv.evaluate.prefix_cache import can_share
from mtkv.latent.model.student import LatentStudent
from mtkv.models.integrity import causal_class, load_checked
from mtkv.models.load import read_tokenizer
from mtkv.models.paths import is_latent
from mtkv.models.rope_scaling import context_length
from mtkv.models.tokenization import end_answers, read_prompts_as_rows

CHUNK = 8  # batches that lm-eval's own loop gets at a time: what it found is kept between them


def load_folder(folder: Path) -> tuple[PreTrainedModel | LatentStudent, PreTrainedTokenizerBase]:
    """Model (as saved, on the GPU when there is one) and tokenizer of a Hugging Face folder, or of a latent student's."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    latent = is_latent(folder)
    load: Any = (
        LatentStudent.load if latent else partial(load_checked, causal_class(AutoConfig.from_pretrained(folder)))
    )
    model = load(folder, dtype="auto", local_files_only=True, device_map=device)
    return model, read_tokenizer(folder, local_files_only=True)


class EvaluationModel(HFLM):
    """`HFLM` that refuses to truncate, is quiet and counts. `shares_beginnings`: what many prompts begin with may be read once for all."""

    shares_beginnings = True

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, chat: bool = False
    ) -> None:
        """`chat`: prompts come in the tokenizer's chat template. Prompts are encoded as those of rows are, and answers also end where
        a row's does; model and tokenizer are changed for that.

        Raises ValueError for a model without an eos id in its generation config, whose answers would never end, and for `chat` with a
        tokenizer whose template cannot be used (`chat_template`).
        """
        if model.generation_config is None or model.generation_config.eos_token_id is None:
            raise ValueError(f"{model.name_or_path}: generation_config has no eos_token_id, generation would not stop")
        end_answers(model, read_prompts_as_rows(tokenizer, chat).end_id)
        # In half precision the log-likelihoods of different choices would often round to the same number.
        super().__init__(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, softmax_dtype="float32"
        )
        self.journal = Journal()  # the answers known before, and where new ones go
        self._chunk = CHUNK * batch_size
        self.forward_passes = 0  # of whole batches
        self.generated_tokens = 0
        self.question_passes = 0  # each question's own, one after the other: what KaVa compares methods by
        self.passes_before_answer = 0

    @property
    def max_length(self) -> int:
        """The context of the rows that the model was trained on."""
        return context_length(self.model.config) or int(super().max_length)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether it is the greedy one.

        Each context is read once for all its continuations, where the model allows that (`can_share`), else by lm-eval's own loop.
        """
        texts = cut_texts([(context, continuation) for context, continuation in _arguments(requests)], self._encode)
        longest = max(len(self._prompt(list(text.context), text.given[0])) + len(text.continuation) for text in texts)
        check_room(self.max_length, longest - 1)  # the last token is scored but never read
        if not self._can_share(longest):
            self.question_passes += len(texts) * (self.passes_before_answer + 1)
            given = [text.given for text in texts]
            each = in_chunks(
                self, "each", given, self._chunk, lambda places: self._score_each([texts[place] for place in places])
            )
            return [(total, greedy) for total, greedy in each]
        places: dict[tuple[int, ...], list[int]] = {}
        for place, text in enumerate(texts):
            places.setdefault(text.context, []).append(place)
        questions = [
            ChoiceQuestion(
                tuple(self._prompt(list(context), texts[own[0]].given[0])),
                tuple(texts[place].continuation for place in own),
            )
            for context, own in places.items()
        ]
        self.question_passes += len(questions) * (self.passes_before_answer + 1)
        with torch.inference_mode():
            share = self.shares_beginnings
            scores = score_choices(self.model, self._forward, questions, self.batch_size, self.journal, share)
        found: dict[int, Score] = {}
        for own, of_question in zip(places.values(), scores, strict=True):
            found |= dict(zip(own, of_question, strict=True))
        return [found[place] for place in range(len(texts))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Continuation of each prompt up to its stop text or eos, the greedy one.

        An answer is what lm-eval gives in batches of one: in larger ones it goes on behind a stop text that is a special token,
        until the whole batch has met it.
        """
        texts, loop = _arguments(requests), super().generate_until

        def by_loop(places: Sequence[int]) -> Callable[[Sequence[int]], list[str]]:
            return lambda part: self._halving(partial(loop, [requests[places[number]] for number in part], True))

        wanted = [text for text, _ in texts]
        prompts = [self._prompt(ids, text) for ids, text in zip(self._encode(wanted), wanted, strict=True)]
        encoded = dict(zip((text for text, _ in texts), prompts, strict=True))
        said: dict[int, str] = {}
        by_settings: dict[str, list[int]] = {}
        for place, (_, settings) in enumerate(texts):
            by_settings.setdefault(json.dumps(settings, sort_keys=True), []).append(place)
        for places in by_settings.values():
            ids, settings = [encoded[texts[place][0]] for place in places], texts[places[0]][1]
            check_room(self.max_length, max(map(len, ids)), settings["max_gen_toks"])
            if not (is_greedy(self.model, settings) and self._can_share(1)):
                found = in_chunks(self, "texts", [texts[place] for place in places], self._chunk, by_loop(places))
            else:
                found = self._generate(ids, settings)
            said |= dict(zip(places, found, strict=True))
        return [said[place] for place in range(len(texts))]

    def _generate(self, prompts: list[list[int]], settings: dict[str, Any]) -> list[str]:
        limit, eos = settings["max_gen_toks"], self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        until = settings.get("until")
        stops = handle_stop_sequences(list(until) if isinstance(until, list) else until, eos=eos)
        ended = ends(self.model, self.tokenizer, stops)
        share = self.shares_beginnings and self._can_share(max(map(len, prompts)) + limit)
        with torch.inference_mode():
            decoder = GreedyDecoder(self.model, self._forward, self._choose(), ended, limit)
            new = decoder.generate(prompts, self.batch_size, share, self.journal)
        self._count(list(map(len, new)))
        return [postprocess_generated_text(self.tok_decode(ids), stops, None) for ids in new]

    def _prompt(self, ids: list[int], text: str) -> list[int]:
        """What is read before an answer, from a prompt's own tokens; `text`: the prompt as given."""
        return ids

    def _can_share(self, longest: int) -> bool:
        return can_share(self.model, longest)

    def _choose(self) -> Choose:
        return next_tokens(self.model)

    def _score_each(self, texts: Sequence[Cut]) -> list[Score]:
        """Scores by lm-eval's own loop."""
        pairs = [(text.given, list(text.context), list(text.continuation)) for text in texts]
        return self._halving(partial(self._loglikelihood_tokens, pairs, True))

    def _count(self, said: Sequence[int]) -> None:
        """Count answers of these numbers of tokens; each took one pass for every token."""
        self.generated_tokens += sum(said)
        self.question_passes += sum(said) + len(said) * self.passes_before_answer

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
        finite: Any = LogitsProcessorList([checked])
        sequences = super()._model_generate(context, max_length, stop, logits_processor=finite, **generation_kwargs)
        new = sequences[:, context.shape[1] :]
        self.forward_passes += new.shape[1]
        self._count((new != self.tokenizer.pad_token_id).sum(1).tolist())
        return sequences


def _arguments(requests: Sequence[Instance]) -> list[tuple[Any, ...]]:
    return [request.args for request in requests]
