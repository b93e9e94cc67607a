"""Log-likelihoods of choices with their question read once: (context, continuation) texts are cut into tokens, then scored together.

lm-eval's loop reads the whole text anew for each choice, and takes the softmax at every token. Here a row of the batch is one question
with all its choices one behind the other; a mask keeps each choice from seeing the others, and its positions continue the question's.
Logits are made only where a choice is read.

Where a continuation begins: as in lm-eval, blanks at the context's end belong to the continuation, and the whole text is encoded at once.
lm-eval cuts it after as many tokens as the context has alone; where a tokenizer merges the context's last character with a continuation
("：" and "北" into "：北"), that would drop part of the continuation. Here all continuations of one context begin at the first token in
which any differs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from mtkv.evaluate.batch_size import in_batches, rows_to_read
from mtkv.evaluate.journal import Journal
from mtkv.evaluate.prefix_cache import Forward, Group, for_rows, read_beginning, shared_beginnings


@dataclass(frozen=True)
class Cut:
    """A text as given, and the token ids before and after the cut."""

    given: tuple[str, str]
    context: tuple[int, ...]
    continuation: tuple[int, ...]


def cut_texts(texts: Sequence[tuple[str, str]], encode: Callable[[list[str]], list[list[int]]]) -> list[Cut]:
    """Each (context, continuation) of `texts` in tokens, in the order given."""
    moved = [_blanks_moved(*text) for text in texts]
    wholes = encode([context + continuation for context, continuation in moved])
    contexts = list(dict.fromkeys(context for context, _ in moved))
    alone = dict(zip(contexts, encode(contexts), strict=True))
    start = {context: len(ids) for context, ids in alone.items()}
    for (context, _), whole in zip(moved, wholes, strict=True):
        start[context] = min(start[context], _common_length(alone[context], whole))
    cuts = [start[context] for context, _ in moved]
    return [
        Cut(text, tuple(whole[:cut]), tuple(whole[cut:])) for text, whole, cut in zip(texts, wholes, cuts, strict=True)
    ]


def _blanks_moved(context: str, continuation: str) -> tuple[str, str]:
    """Blanks and line breaks at the end of the context go to the continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _common_length(first: list[int], second: list[int]) -> int:
    """Number of leading tokens that two texts share."""
    differing = (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differing, min(len(first), len(second)))


Score = tuple[float, bool]  # log-likelihood in nats, and whether it is what greedy decoding would say
OVERHEAD = 64  # what a group costs besides its tokens, in tokens


@dataclass(frozen=True)
class ChoiceQuestion:
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
    model: Any,
    forward: Forward,
    questions: Sequence[ChoiceQuestion],
    batch_size: int,
    journal: Journal | None = None,
    share: bool = True,
) -> list[tuple[Score, ...]]:
    """Scores of the choices of each question; without `share` every context is read on its own. Raises UnanswerableError when memory does
    not hold one of them.

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
    contexts = [question.context for question in questions]
    alone = Group(0, tuple(sorted(range(len(contexts)), key=lambda place: -len(contexts[place]))))
    for group in shared_beginnings(contexts, OVERHEAD) if share else [alone]:
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
    model: Any, forward: Forward, batch: Sequence[ChoiceQuestion], beginning: DynamicCache | None, shared: int
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
    batch: Sequence[ChoiceQuestion], shared: int
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


def _of_question(question: ChoiceQuestion, logits: Float[Tensor, "time vocab"]) -> tuple[Score, ...]:
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
