"""Scores by which tokens are selected (method.md §6): `SCORES[method](tokens) -> [batch, kv_heads, time]`, the highest are kept.

Scores of tokens outside the mask mean nothing. All means and softmaxes run over the selectable tokens of a row only, so that
neither padding nor the other rows of a batch change a row's scores (the published R-KV code scores with the first row alone).
They are float64: scores of equal keys (layer 0 has them for equal words) then differ by less than `mtkv.kv.select` rounds, and tie.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mtkv.kv.row_rng import row_uniforms
from mtkv.registry import needs

Scores = Float[Tensor, "batch kv_heads time"]
# R-KV (arXiv 2505.24133, section 4 and its released code).
POOL, THRESHOLD, MIX = 7, 0.5, 0.07


@dataclass(frozen=True)
class Tokens:
    """The inputs of a method. `count [batch]`: how many tokens of each row will be kept; `mask`: the tokens to choose from."""

    keys: Float[Tensor, "batch kv_heads time head_dim"]
    mask: Bool[Tensor, "batch time"]
    count: Int[Tensor, " batch"]
    importance: Scores | None = None
    rate: float = 0.1
    window: int = 8
    generator: torch.Generator | None = None
    seeds: Int[Tensor, " batch"] | None = None

    @property
    def rank(self) -> Int[Tensor, "batch 1 time"]:
        """0, 1, 2 … over the selectable tokens of a row."""
        return (self.mask.cumsum(1) - 1)[:, None]

    @property
    def length(self) -> Int[Tensor, "batch 1 1"]:
        return self.mask.sum(1)[:, None, None]

    def per_head(self, score: Tensor) -> Scores:
        """A score `[batch, 1, time]` repeated for every KV head."""
        return score.double().expand(-1, self.keys.shape[1], -1)


def keep_first(tokens: Tokens) -> Scores:
    return tokens.per_head(-tokens.rank)


def keep_last(tokens: Tokens) -> Scores:
    return tokens.per_head(tokens.rank)


def uniform(tokens: Tokens) -> Scores:
    """1 for token number ⌊(i + ½)·n/k⌋ of n, i = 0 … k−1, else 0: k evenly spaced tokens, the middle one for k = 1."""
    n, k = tokens.length.clamp_min(1), tokens.count[:, None, None]
    # how many of those numbers lie before rank r
    before, after = ((2 * k * rank + n - 1) // (2 * n) for rank in (tokens.rank, tokens.rank + 1))
    return tokens.per_head(after - before)


def random(tokens: Tokens) -> Scores:
    """Uniform draws. With `seeds` a row's draws depend on its own seed only, and belong to ranks, so padding does not move them."""
    shape = tokens.keys.shape[:3]
    if tokens.seeds is not None:
        draws = row_uniforms(tokens.seeds, (shape[2], shape[1])).transpose(1, 2)
        return draws.gather(2, tokens.rank.clamp_min(0).expand(shape))
    if tokens.generator is None:
        raise ValueError("method random needs `seeds`, one per row, or a `generator`")
    return torch.rand(shape, generator=tokens.generator, device=tokens.generator.device).to(tokens.keys.device)


@needs("attention")
def attention(tokens: Tokens) -> Scores:
    """The importance of each token divided by its sum over the selectable tokens."""
    if tokens.importance is None:
        raise ValueError("methods attention, rkv and rkv_decode need `importance [batch, kv_heads, time]`")
    kept = tokens.importance.double().masked_fill(~tokens.mask[:, None], 0)
    return kept / kept.sum(-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)


def cosine(tokens: Tokens) -> Scores:
    """−Σ cosine to the other selectable keys of the same head, divided by the number of selectable tokens: the least redundant first."""
    unit = unit_keys(tokens)
    total = (unit * unit.sum(2, keepdim=True)).sum(-1) - unit.square().sum(-1)
    return -total / tokens.length.clamp_min(1)


@needs("attention")
def rkv(tokens: Tokens) -> Scores:
    """KaVa's S = λ·I + (1 − λ)·R (arXiv 2510.02312, section 3.2 and its listing), λ = `rate`, R = softmax(−Σ cosine to the other keys / N).

    I is `importance` divided by its sum over the selectable tokens: like R it then sums to 1 in every head, and λ mixes like with like.
    """
    redundancy = masked_softmax(cosine(tokens), tokens.mask)
    return tokens.rate * attention(tokens) + (1 - tokens.rate) * redundancy


@needs("attention")
def rkv_decode(tokens: Tokens) -> Scores:
    """R-KV's own Z = λ·I − (1 − λ)·R with λ = 0.07 (arXiv 2505.24133). The last `window` tokens come first, latest before earlier.

    Taken from the paper and its code: I is the attention from the window's queries to the tokens before it (`answer_importance` with
    `past`), max-pooled over 7 positions. R is the softmax of the mean cosine to the other keys, where each token's cosine to the latest
    key more similar to it than 0.5 counts as 0, so that the newest of several copies does not look redundant. The window counts towards
    the budget. Not taken: where no key is that similar, their code sets the cosine to key 0 to 0; and it uses the first row's scores for
    all rows.
    """
    window = tokens.rank >= tokens.length - tokens.window
    past = tokens.mask[:, None] & ~window
    share = attention(replace(tokens, mask=past[:, 0]))
    pooled = F.max_pool1d(share, POOL, stride=1, padding=POOL // 2)
    unit = unit_keys(tokens)
    similar = unit @ unit.transpose(2, 3)
    similar.diagonal(dim1=2, dim2=3).zero_()
    position = torch.arange(similar.shape[-1], device=similar.device)
    latest = torch.where(similar > THRESHOLD, position, -1).amax(-1, keepdim=True)
    similar = similar.masked_fill(position == latest, 0)
    redundancy = masked_softmax(similar.sum(2) / tokens.length.clamp_min(1), tokens.mask)
    score = MIX * pooled - (1 - MIX) * redundancy
    return torch.where(window, tokens.per_head(2 + tokens.rank), score)


def unit_keys(tokens: Tokens) -> Float[Tensor, "batch kv_heads time head_dim"]:
    """Keys of length 1, zero outside the mask (also where padding holds NaN)."""
    keys = tokens.keys.double().masked_fill(~tokens.mask[:, None, :, None], 0)
    return F.normalize(keys, dim=-1)


def masked_softmax(x: Scores, mask: Bool[Tensor, "batch time"]) -> Scores:
    """Softmax over the tokens of the mask; zeros in a row without any."""
    return x.masked_fill(~mask[:, None], -torch.inf).softmax(-1).nan_to_num(0)


SCORES: dict[str, Callable[[Tokens], Scores]] = {
    "full": keep_first,
    "keep_first": keep_first,
    "keep_last": keep_last,
    "right_crop": keep_last,
    "uniform": uniform,
    "random": random,
    "attention": attention,
    "cosine": cosine,
    "rkv": rkv,
    "rkv_decode": rkv_decode,
}
