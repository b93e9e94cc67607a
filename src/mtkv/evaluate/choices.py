"""Log-likelihoods of a question's choices with the question read once.

lm-eval's loop reads the whole text anew for each choice, and takes the softmax at every token. Here a row of the batch is one question
with all its choices one behind the other; a mask keeps each choice from seeing the others, and its positions continue the question's.
Logits are made only where a choice is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from mtkv.evaluate.journal import Journal
from mtkv.evaluate.memory import in_batches, rows_to_read
from mtkv.evaluate.shared import Forward, for_rows, read_beginning, shared_beginnings

Score = tuple[float, bool]  # log-likelihood in nats, and whether it is what greedy decoding would say
OVERHEAD = 64  # what a group costs besides its tokens, in tokens


@dataclass(frozen=True)
class Question:
    """Token ids of a context and of each continuation; none is empty."""

    context: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> list[tuple[int, ...]]:
        """The context and the choices."""
        return [self.context, *self.choices]

    @property
    def read(self) -> int:
        """Tokens of the choices that are read; the last one of each is only scored."""
        return sum(len(choice) - 1 for choice in self.choices)


def score_choices(
    model: Any, forward: Forward, questions: Sequence[Question], batch_size: int, journal: Journal | None = None
) -> list[tuple[Score, ...]]:
    """Scores of the choices of each question. Raises UnanswerableError when memory does not hold one of them.

    A batch whose scores `journal` knows is not read; the others are laid out as they would be without it, so that scores are the same to
    the last bit.
    """
    journal = Journal() if journal is None else journal
    scores = {
        place: tuple((float(total), bool(greedy)) for total, greedy in kept)
        for place, question in enumerate(questions)
        if (kept := journal.get("scores", place, question.tokens)) is not None
    }
    known = frozenset(scores)
    for group in shared_beginnings([question.context for question in questions], OVERHEAD):
        if known.issuperset(group.members):
            continue
        start = list(questions[group.members[0]].context[: group.shared])
        beginning = read_beginning(forward, start, model.device)

        def work(places: Sequence[int], beginning: DynamicCache | None = beginning, shared: int = group.shared) -> None:
            if known.issuperset(places):
                return
            batch = [questions[place] for place in places]
            for place, found in zip(places, _score(model, forward, batch, beginning, shared), strict=True):
                scores[place] = found
                journal.put("scores", place, questions[place].tokens, found)
            journal.pause()

        scored = max(questions[place].read for place in group.members) + 1
        longest = max(len(questions[place].context) for place in group.members) + scored
        in_batches(group.members, rows_to_read(model, batch_size, longest, scored), work)
    return [scores[place] for place in range(len(questions))]


def _score(
    model: Any, forward: Forward, batch: Sequence[Question], beginning: DynamicCache | None, shared: int
) -> list[tuple[Score, ...]]:
    ids, positions, allowed = (part.to(model.device) for part in lay_out(batch, shared))
    first = ids.shape[1] - max(question.read for question in batch) - 1  # the context's last token
    hidden = torch.zeros(allowed.shape, dtype=model.dtype, device=model.device)
    hidden.masked_fill_(~allowed, torch.finfo(model.dtype).min)
    logits = forward(
        input_ids=ids,
        position_ids=positions,
        attention_mask=hidden[:, None],
        past_key_values=for_rows(beginning, len(batch)),
        use_cache=True,
        logits_to_keep=torch.arange(first, ids.shape[1], device=model.device),
    ).logits
    return [_of_question(question, row) for question, row in zip(batch, logits, strict=True)]


def lay_out(
    batch: Sequence[Question], shared: int
) -> tuple[Int[Tensor, "rows time"], Int[Tensor, "rows time"], Bool[Tensor, "rows time seen"]]:
    """Ids, positions and who sees whom (`seen`: the shared tokens, then `time`) of rows: padding, context, choices, padding.

    Contexts end in the same column. Padding sees itself, so that no row of the softmax is empty.
    """
    width = max(len(question.context) for question in batch) - shared
    time = width + max(question.read for question in batch)
    ids, positions = torch.zeros(len(batch), time, dtype=torch.long), torch.zeros(len(batch), time, dtype=torch.long)
    allowed = torch.eye(time, dtype=torch.bool).repeat(len(batch), 1, 1)
    for row, question in enumerate(batch):
        start, place = width - len(question.context) + shared, width
        context = slice(start, width)
        parts = [(context, question.context[shared:], shared)]
        for choice in question.choices:
            parts.append((slice(place, place + len(choice) - 1), choice[:-1], len(question.context)))
            place += len(choice) - 1
        for part, tokens, position in parts:
            ids[row, part] = torch.tensor(tokens, dtype=torch.long)
            positions[row, part] = position + torch.arange(len(tokens))
            allowed[row, part, context] = True
            allowed[row, part, part] = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    seen = torch.ones(len(batch), time, shared, dtype=torch.bool)
    return ids, positions, torch.cat([seen, allowed], dim=2)


def _of_question(question: Question, logits: Float[Tensor, "time vocab"]) -> tuple[Score, ...]:
    """Scores out of the logits at the context's last token and at each token of the choices that was read."""
    scores, place = [], 1
    for choice in question.choices:
        columns = [0, *range(place, place + len(choice) - 1)]
        place += len(choice) - 1
        said = logits[columns].log_softmax(-1, dtype=torch.float32)
        tokens = torch.tensor(choice, device=said.device)
        taken = said.gather(1, tokens[:, None])
        scores.append((float(taken.sum()), bool((said.argmax(-1) == tokens).all())))
    return tuple(scores)
