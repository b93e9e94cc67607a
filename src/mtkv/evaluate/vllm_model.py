"""A causal language model in vLLM, through lm-eval's own class for it. Importing this module imports vllm.

Not run on a GPU yet: what is tested is that lm-eval's class gets the right arguments and requests, with a stand-in for vLLM. vLLM batches
by itself as memory allows, so `evaluation.batch_size` is not used, and its numbers differ from transformers' in the last digits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.vllm_causallms import VLLM
from transformers import AutoConfig, GenerationConfig

from mtkv.evaluate.batch_size import check_room
from mtkv.evaluate.generation import checked
from mtkv.evaluate.journal import Journal, in_chunks
from mtkv.evaluate.loglikelihood import cut_texts
from mtkv.models.integrity import causal_class, check_tokenizer, check_weights, load_checked
from mtkv.models.rope_scaling import context_length
from mtkv.models.tokenization import read_prompts_as_rows

CHUNK = 1024  # requests that vLLM gets at a time: what it found is kept between them


class VllmModel(VLLM):
    """`VLLM` that refuses to truncate, cuts continuations as `EvaluationModel` does, follows the model's repetition penalty and counts.

    Raises ValueError for a folder that transformers would not load, as `load_checked` does.
    """

    def __init__(self, folder: Path, dtype: str | None, chat: bool) -> None:
        settings = AutoConfig.from_pretrained(folder)
        if getattr(settings, "quantization_config", None) is None:  # its names and shapes, in no memory
            load_checked(causal_class(settings), folder, config=settings, device_map="meta")
        else:
            check_weights(folder)
        super().__init__(
            pretrained=str(folder),
            dtype=dtype or "auto",  # type: ignore[arg-type]
            batch_size="auto",
            max_model_len=context_length(settings),
            trust_remote_code=False,
        )
        check_tokenizer(folder, self.tokenizer)
        self.end_id = read_prompts_as_rows(self.tokenizer, chat).end_id
        self.hf_chat_template = None  # that of its tokenizer, as `predict` dates it, not what vLLM found before
        self.journal = Journal()  # the answers known before, and where new ones go
        self.forward_passes = 0  # vLLM does not say
        self.generated_tokens = 0
        self.question_passes = 0
        own = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").is_file() else None
        self.penalty = getattr(own, "repetition_penalty", None) or 1.0

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether it is the greedy one."""
        texts = cut_texts([request.args for request in requests], self._encode)  # type: ignore[misc]
        longest = max(len(text.context) + len(text.continuation) for text in texts)
        check_room(self.max_length, longest, 1)  # vLLM generates at least one token
        pairs = [(text.given, list(text.context), list(text.continuation)) for text in texts]
        self.question_passes += len(pairs)

        def work(places: Sequence[int]) -> list[tuple[float, bool]]:
            return self._loglikelihood_tokens([pairs[place] for place in places], disable_tqdm=True)

        found = in_chunks(self, "each", [text.given for text in texts], CHUNK, work)
        return [(total, greedy) for total, greedy in found]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Continuation of each prompt up to its stop text or eos."""
        texts: list[tuple[str, dict[str, Any]]] = [request.args for request in requests]  # type: ignore[misc]
        encoded = self._encode([text for text, _ in texts])
        for ids, (_, settings) in zip(encoded, texts, strict=True):
            check_room(self.max_length, len(ids), settings["max_gen_toks"])
        own = {"repetition_penalty": self.penalty, "stop_token_ids": [self.end_id], "logprobs": 1}
        asked = [
            Instance("generate_until", request.doc, (text, settings | own), request.idx)
            for request, (text, settings) in zip(requests, texts, strict=True)
        ]
        generate_until = super().generate_until

        def work(places: Sequence[int]) -> list[str]:
            said = generate_until([asked[place] for place in places], disable_tqdm=True)
            tokens = sum(len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in said)
            self.generated_tokens += tokens
            self.question_passes += tokens
            return said

        return in_chunks(self, "texts", texts, CHUNK, work)

    def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
        """lm-eval's. Raises UnanswerableError where an answer has no log-probability: that of a token chosen from NaN is NaN."""
        found = super()._model_generate(requests, generate, sampling_params)
        if generate:
            checked(torch.empty(0), torch.tensor([[each.outputs[0].cumulative_logprob] for each in found]))
        return found

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = self.tok_encode(texts)
        return encoded
