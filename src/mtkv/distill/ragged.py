"""Packed tokens as padded rows, and distributions over the earlier tokens of the same row.

Packed: the supervised tokens of all rows of a batch one after another. `sample [tokens]` (long, ascending) is the row each belongs to;
tokens of a row are in time order. A mean over packed tokens weights a row by its tokens: with n_r tokens and mean d_r per row it is
Σ n_r·d_r / Σ n_r, and what is computed for a token depends on its own row only.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtkv.fuse.prototypes import padded


def to_padded(
    x: Float[Tensor, "tokens ..."], sample: Int[Tensor, " tokens"], batch: int
) -> tuple[Float[Tensor, "batch time ..."], Bool[Tensor, "batch time"]]:
    """Rows padded with zeros on the right to the longest one, and where they hold tokens. Rows without tokens are allowed."""
    rows, count = padded(x, sample, batch)
    return rows, torch.arange(rows.shape[1], device=x.device) < count[:, None]


def causal_pairs(mask: Bool[Tensor, "batch time"]) -> Bool[Tensor, "batch time time"]:
    """[b, i, j]: query i of row b may look at j, the same token or an earlier one, and j is a token."""
    time = mask.shape[1]
    return torch.ones(time, time, dtype=torch.bool, device=mask.device).tril() & mask[:, None, :]


def causal_log_softmax(
    logits: Float[Tensor, "*batch query key"], allowed: Bool[Tensor, "*batch query key"]
) -> Float[Tensor, "*batch query key"]:
    """Log-softmax over the allowed keys. Finite everywhere: keys that are not allowed get the logarithm of a probability that is 0."""
    lowest = torch.finfo(logits.dtype).min / 4
    return logits.masked_fill(~allowed, lowest).log_softmax(-1)


def mean_divergence(
    target: Float[Tensor, "batch *heads query key"],
    log_target: Float[Tensor, "batch *heads query key"],
    log_student: Float[Tensor, "batch *heads query key"],
    allowed: Bool[Tensor, "batch *heads query key"],
    mask: Bool[Tensor, "batch query"],
) -> Float[Tensor, ""]:
    """KL(target ‖ student) in nats, mean over the tokens (and heads). The first token of a row sees itself only and adds 0."""
    pairs = (target * (log_target - log_student)).masked_fill(~allowed, 0.0)
    per_query = pairs.sum(-1).flatten(1, -2).mean(1) if pairs.ndim > 3 else pairs.sum(-1)
    return per_query.masked_fill(~mask, 0.0).sum() / mask.sum()


def full_precision(x: Tensor) -> Tensor:
    """As float32, or as it is when more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
