"""Greedy generation in which every answer ends by itself: token ids of prompts in, new token ids out.

lm-eval's loop goes on with a batch until each of its answers has met the same stop text, or the limit. Here an answer that is complete
leaves the batch and the next prompt takes its place, and a common beginning of the prompts is read once. The next token and the end of
an answer are those of transformers' greedy search and lm-eval's stop texts; what asks for more (`is_greedy`) is left to lm-eval's loop.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerBase
from transformers.generation import RepetitionPenaltyLogitsProcessor

from mtkv.evaluate.batch_size import halved, rows_at_once
from mtkv.evaluate.journal import Journal
from mtkv.evaluate.lm_eval_tasks import UnanswerableError
from mtkv.evaluate.prefix_cache import Forward, for_rows, layers_of, read_beginning, shared_beginnings

OVERHEAD = 4096  # what a group costs besides its tokens, in tokens: its last answers are made in ever smaller batches


@dataclass
class GeneratedAnswer:
    """A prompt and the tokens said so far."""

    prompt: Sequence[int]
    said: list[int] = field(default_factory=list)


@dataclass
class Batch:
    """Answers under way, with the KV of what they have read, padded in front of it and behind a common beginning."""

    answers: list[GeneratedAnswer]
    cache: DynamicCache
    seen: Bool[Tensor, "rows time"]  # false at padding


Choose = Callable[[Float[Tensor, "rows vocab"], Sequence[GeneratedAnswer]], list[int]]


@dataclass(frozen=True)
class GreedyDecoder:
    """How answers are made: `forward` reads for `model`, `choose` picks each next token, `ended` says whether an answer is complete; it
    has at most `limit` tokens."""

    model: Any
    forward: Forward
    choose: Choose
    ended: Callable[[list[int]], bool]
    limit: int

    def generate(
        self, prompts: Sequence[Sequence[int]], batch_size: int, share: bool, journal: Journal | None = None
    ) -> list[list[int]]:
        """The new tokens of each prompt.

        Without `share` every prompt is read on its own. Answers that `journal` knows are taken from it, complete ones go there.
        Raises UnanswerableError when memory does not hold one prompt, or the model's logits are not finite.
        """
        journal = Journal() if journal is None else journal
        answers = [
            GeneratedAnswer(prompt, journal.get("said", place, prompt) or []) for place, prompt in enumerate(prompts)
        ]
        places = {id(answer): place for place, answer in enumerate(answers)}
        groups = [(0, sorted(answers, key=lambda answer: -len(answer.prompt)))]
        if share:
            found = shared_beginnings(prompts, OVERHEAD)
            groups = [(group.shared, [answers[place] for place in group.members]) for group in found]
        for shared, waiting in groups:
            rows = rows_at_once(self.model, batch_size, len(waiting[0].prompt) + self.limit, 1)
            waiting = [answer for answer in waiting if not answer.said]
            while waiting:
                left = set(map(id, waiting))
                try:
                    for complete in self._answer_all(waiting, rows, shared):
                        for answer in complete:
                            journal.put("said", places[id(answer)], answer.prompt, answer.said)
                        left.difference_update(map(id, complete))
                        journal.pause()
                    break
                except RuntimeError as error:
                    rows = halved(rows, error)
                waiting = [answer for answer in waiting if id(answer) in left]
                for answer in waiting:
                    answer.said.clear()
        return [answer.said for answer in answers]

    def _answer_all(
        self, waiting: Sequence[GeneratedAnswer], rows: int, shared: int
    ) -> Iterator[list[GeneratedAnswer]]:
        """After every pass over the batch: the answers that it completed."""
        beginning = read_beginning(self.forward, waiting[0].prompt[:shared], self.model.device)
        queue, batch = list(reversed(waiting)), None
        while queue or batch:
            free = rows - (len(batch.answers) if batch else 0)
            if queue and (batch is None or free >= max(1, rows // 4)):
                new = [queue.pop() for _ in range(min(free, len(queue)))]
                started = self._begin(new, beginning, shared)
                batch = started if batch is None else joined(batch, started)
            else:
                assert batch is not None
                self._step(batch)
            complete = [place for place, one in enumerate(batch.answers) if self._finished(one.said)]
            yield [batch.answers[place] for place in complete]
            batch = without(batch, complete)

    def _finished(self, said: list[int]) -> bool:
        return len(said) >= self.limit or bool(said and self.ended(said))

    def _begin(self, answers: list[GeneratedAnswer], beginning: DynamicCache | None, shared: int) -> Batch:
        """Read the prompts behind their beginning, padded on the left, and say the first token."""
        width, device = max(len(answer.prompt) for answer in answers) - shared, self.model.device
        ids = torch.zeros(len(answers), width, dtype=torch.long)
        seen = torch.zeros(len(answers), width, dtype=torch.bool)
        for row, answer in enumerate(answers):
            own = torch.tensor(answer.prompt[shared:])
            ids[row, width - len(own) :], seen[row, width - len(own) :] = own, True
        seen = torch.cat([torch.ones(len(answers), shared, dtype=torch.bool), seen], dim=1).to(device)
        batch = Batch(answers, for_rows(beginning, len(answers)), seen)
        self._read(batch, ids.to(device))
        return batch

    def _step(self, batch: Batch) -> None:
        """Read the last token of each answer and say the next."""
        ids = torch.tensor([[answer.said[-1]] for answer in batch.answers], device=self.model.device)
        batch.seen = torch.cat([batch.seen, batch.seen.new_ones(len(ids), 1)], dim=1)
        self._read(batch, ids)

    def _read(self, batch: Batch, ids: Tensor) -> None:
        logits = self.forward(
            input_ids=ids,
            attention_mask=batch.seen.long(),
            position_ids=(batch.seen.long().cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        for answer, token in zip(batch.answers, self.choose(checked(ids, logits.float()), batch.answers), strict=True):
            answer.said.append(token)


def checked(_read: Tensor, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
    """The logits, also as a processor of transformers' `generate`. Raises UnanswerableError for a row without a likeliest token: of NaN
    greedy search would say token 0 and be scored. Some tokens at −∞ are what a model never says."""
    greatest = logits.amax(-1)  # NaN where there is one
    if not bool(greatest.isfinite().all()):
        said = sorted(set(map(str, greatest[~greatest.isfinite()].tolist())))
        raise UnanswerableError(
            f"the model's logits are not finite ({', '.join(said)}), so it says nothing: its training diverged, or its dtype is too narrow"
        )
    return logits


def without(batch: Batch, places: Sequence[int]) -> Batch | None:
    """The batch without these answers, and without columns that nobody left in it sees; None when none is left."""
    if not places:
        return batch
    left = [place for place in range(len(batch.answers)) if place not in places]
    if not left:
        return None
    rows = torch.tensor(left, device=batch.seen.device)
    seen = batch.seen[rows]
    columns = seen.any(0).nonzero()[:, 0]
    for layer in layers_of(batch.cache):
        layer.keys, layer.values = (kv[rows][:, :, columns] for kv in (layer.keys, layer.values))
    return Batch([batch.answers[place] for place in left], batch.cache, seen[:, columns])


def joined(one: Batch, other: Batch) -> Batch:
    """Both batches as one; the shorter one is padded on the left."""
    longest = max(one.seen.shape[1], other.seen.shape[1])

    def padded(values: Tensor, axis: int) -> Tensor:
        shape = list(values.shape)
        shape[axis] = longest - shape[axis]
        return torch.cat([values.new_zeros(shape), values], dim=axis)

    for mine, theirs in zip(layers_of(one.cache), layers_of(other.cache), strict=True):
        mine.keys = torch.cat([padded(mine.keys, 2), padded(theirs.keys, 2)])
        mine.values = torch.cat([padded(mine.values, 2), padded(theirs.values, 2)])
    seen = torch.cat([padded(one.seen, 1), padded(other.seen, 1)])
    return Batch(one.answers + other.answers, one.cache, seen)


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

    def choose(logits: Tensor, answers: Sequence[GeneratedAnswer]) -> list[int]:
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
