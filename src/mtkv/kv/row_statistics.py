"""What extraction can note of a teacher's whole row beside its KV: numbers by which routers weigh teachers (`mtkv.fuse.routers`).

In: the teacher's last hidden states, of the pass that gives its KV. Out: of each statistic one number a row, its mean over the row's
target tokens. A statistic is a function `(logits [tokens, vocabulary], following [tokens]) -> [tokens]` of float32 logits and of the
tokens that follow there; adding one is a line of `ROW_STATISTICS`.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

HEAD_CHUNK = 256  # target tokens that go through the output head at once
# What some model families do to the head's output, by the name in their config.
AFTER_HEAD: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logit_scale": lambda logits, factor: logits * factor,
    "logits_scaling": lambda logits, divisor: logits / divisor,
    "final_logit_softcapping": lambda logits, cap: cap * torch.tanh(logits / cap),
}


def next_log_probability(
    logits: Float[Tensor, "tokens vocabulary"], following: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """log p(following), in nats."""
    return -F.cross_entropy(logits, following, reduction="none")


def next_entropy(
    logits: Float[Tensor, "tokens vocabulary"], following: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """−Σ p·log p over the vocabulary, in nats, whatever follows. One more tensor of the logits' size, as for the cross-entropy."""
    p = logits.softmax(-1)
    return torch.special.entr(p, out=p).sum(-1)


ROW_STATISTICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "likelihood": next_log_probability,
    "entropy": next_entropy,
}


def target_statistics(
    model: PreTrainedModel,
    hidden: Float[Tensor, "batch time hidden"],
    input_ids: Int[Tensor, "batch time"],
    is_target: Bool[Tensor, "batch time"],
    names: Sequence[str],
) -> dict[str, Float[Tensor, " batch"]]:
    """The statistics `names` of each row; NaN for rows without target tokens and models without a head.

    `hidden`: last states of the base model. Only states that predict a target reach the head, a chunk at a time and once for all names.
    """
    head = model.get_output_embeddings() if model.can_generate() else None
    if head is None or model.config.is_encoder_decoder:
        return {name: torch.full((len(input_ids),), math.nan) for name in names}
    row, time = torch.nonzero(is_target[:, 1:], as_tuple=True)
    config = model.config.get_text_config()
    totals = {name: torch.zeros(len(input_ids), device=hidden.device) for name in names}
    for rows, times in zip(row.split(HEAD_CHUNK), time.split(HEAD_CHUNK), strict=True) if names else ():
        logits = head(hidden[rows, times]).float()
        for setting, change in AFTER_HEAD.items():
            if value := getattr(config, setting, None):
                logits = change(logits, value)
        following = input_ids[rows, times + 1].to(logits.device)
        for name, total in totals.items():
            total.index_add_(0, rows, ROW_STATISTICS[name](logits, following).to(total.device))
    return {name: total / is_target[:, 1:].sum(1).to(total.device) for name, total in totals.items()}
