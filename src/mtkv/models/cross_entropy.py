"""Cross-entropy on the target tokens only (the term δ·CE of method.md §8).

Only hidden states whose next token is a target go through the output head: with a vocabulary of 150 thousand, logits of the prompt and
of padding would be most of a step's memory and time. What a model does to its logits afterwards (soft caps, scales) stays.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mtkv.models.tokenization import EncodedRow, pad_batch

IGNORED_LABEL = -100


def padded_labels(rows: Sequence[EncodedRow]) -> Int[Tensor, "batch time"]:
    """Labels of the rows, padded right: the ids of target tokens, −100 elsewhere."""
    labels = [np.where(row.is_target, row.input_ids, IGNORED_LABEL) for row in rows]
    return torch.from_numpy(pad_batch(labels, IGNORED_LABEL))


@contextmanager
def logits_only_at(model: PreTrainedModel, keep: Bool[Tensor, "batch time"]) -> Iterator[None]:
    """Context manager: inside, the model's logits are `[kept, vocabulary]`, those of the positions where `keep` is true, row by row."""

    def pick(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][keep], *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()


def target_logits(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch time"], labels: Int[Tensor, "batch time"]
) -> tuple[Float[Tensor, "targets vocabulary"], Int[Tensor, " targets"]]:
    """Logits that predict the labels other than −100, and those labels.

    Rows are padded on the right, where causal attention never looks, so no attention mask is passed and attention may take its
    fastest path.
    """
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    keep = following != IGNORED_LABEL
    with logits_only_at(model, keep):
        logits = model(input_ids=input_ids, use_cache=False).logits
    return logits, following[keep]


def row_of_targets(labels: Int[Tensor, "batch time"]) -> Int[Tensor, " targets"]:
    """The row of each label that `target_logits` returns."""
    counts = (labels[:, 1:] != IGNORED_LABEL).sum(1)
    return torch.arange(len(labels), device=labels.device).repeat_interleave(counts)


def target_loss(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch time"], labels: Int[Tensor, "batch time"]
) -> Float[Tensor, ""]:
    """Mean next-token cross-entropy over the batch's target tokens, in float32; without any, 0 with a gradient path."""
    logits, following = target_logits(model, input_ids, labels)
    return F.cross_entropy(logits.float(), following) if len(following) else logits.sum()
