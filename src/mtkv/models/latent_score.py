"""Log-likelihoods of continuations after question and latents, one row for each, by the path that training takes.

Slower than scoring all choices of a question at once (`mtkv.evaluate`), but it asks nothing of the model: no masks, positions or cache.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtkv.models.crossentropy import IGNORED_LABEL, logits_only_at

if TYPE_CHECKING:
    from mtkv.models.latent import LatentStudent


@torch.no_grad()
def score(
    student: "LatentStudent", questions: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> list[tuple[float, bool]]:
    """`LatentStudent.score`: all rows in one batch. Continuations are not empty."""
    rows = [student.layout(question, said) for question, said in zip(questions, continuations, strict=True)]
    ids = _padded([ids for ids, _ in rows], 0).to(student.device)
    starts = torch.tensor([start for _, start in rows], device=student.device)
    # The state before each token of the continuation predicts it.
    said = [
        [IGNORED_LABEL] * (len(ids) - len(own) - 1) + [*own] for (ids, _), own in zip(rows, continuations, strict=True)
    ]
    labels = _padded(said, IGNORED_LABEL).to(student.device)
    keep = torch.nn.functional.pad(labels != IGNORED_LABEL, (0, ids.shape[1] - labels.shape[1]))
    embeds = student.embed(ids, starts)
    student.forward_passes += student.passes(1)
    with logits_only_at(student.model, keep):
        logits = student.model(inputs_embeds=embeds, use_cache=False).logits
    tokens = labels[labels != IGNORED_LABEL]
    taken = logits.log_softmax(-1, dtype=torch.float32).gather(1, tokens[:, None])[:, 0]
    greedy = logits.argmax(-1) == tokens
    lengths = [len(own) for own in continuations]
    parts = zip(taken.split(lengths), greedy.split(lengths), strict=True)
    return [(float(logs.sum()), bool(best.all())) for logs, best in parts]


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)
