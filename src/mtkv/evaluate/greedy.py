"""The next token and the end of an answer, as transformers' greedy search and lm-eval's stop texts have them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation import RepetitionPenaltyLogitsProcessor

from mtkv.evaluate.decode import Answer, Choose

# Settings of a generation config that do not touch what greedy search says; the repetition penalty is followed below.
HARMLESS = {
    "temperature", "top_k", "top_p", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff", "do_sample", "repetition_penalty",
    "bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens", "use_cache", "transformers_version",
    "_from_model_config", "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "cache_implementation", "chat_format", "num_return_sequences",
}  # fmt: skip
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature"}
LOOK_BACK = 2  # lm-eval looks at as many tokens as a stop text has, and two more


def is_greedy(model: Any, settings: Mapping[str, Any]) -> bool:
    """Whether the task's settings and the model's own generation config ask for nothing but greedy search."""
    own = (model.generation_config or GenerationConfig()).to_diff_dict()
    sampled = settings.get("do_sample") or settings.get("temperature")
    return not sampled and set(settings) <= KNOWN and set(own) <= HARMLESS


def next_tokens(model: Any) -> Choose:
    """Greedy choice; tokens that were read or said before are less likely by the model's own repetition penalty, if it has one."""
    penalty = getattr(model.generation_config, "repetition_penalty", None) or 1.0
    punish = RepetitionPenaltyLogitsProcessor(float(penalty))

    def choose(logits: Tensor, answers: Sequence[Answer]) -> list[int]:
        if penalty != 1.0:
            for row, answer in enumerate(answers):
                read = torch.tensor([[*answer.prompt, *answer.said]], device=logits.device)
                logits[row] = punish(read, logits[row : row + 1])[0]
        return logits.argmax(-1).tolist()

    return choose


def ends(model: Any, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> Callable[[list[int]], bool]:
    """Whether an answer is complete: its last token is one of the model's eos, or its last tokens hold a stop text."""
    eos = model.generation_config.eos_token_id
    last = set(eos) if isinstance(eos, list) else {eos}
    window = max(len(tokenizer.encode(stop, add_special_tokens=False)) for stop in stops) + LOOK_BACK

    def ended(said: list[int]) -> bool:
        if said[-1] in last:
            return True
        text = tokenizer.decode(said[-window:])
        return any(stop in text for stop in stops)

    return ended
