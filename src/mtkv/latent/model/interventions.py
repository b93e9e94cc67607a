"""What may be done to the refined latents before the final pass, to see whether the answers depend on them.

They are inputs: in the final pass their K and V still mix in what the latent reads of the question, layer by layer. `truncated(0)`, which
leaves only the markers, takes that away too. `conditions` lists those under which a latent student is asked.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Intervention:
    """A change of the refined latents, after which the first `kept(M)` of them stay in the row."""

    def kept(self, tokens: int) -> int:
        """How many of M latents the final pass reads: all of them, unless some are cut off."""
        return tokens

    def __call__(self, latents: Float[Tensor, "batch M hidden"]) -> Float[Tensor, "batch kept hidden"]:
        """The latents' new inputs."""
        raise NotImplementedError


@dataclass(frozen=True)
class Zeroed(Intervention):
    """Every input is zero."""

    def __call__(self, latents: Float[Tensor, "batch M hidden"]) -> Float[Tensor, "batch M hidden"]:
        """Zeros of the same shape."""
        return torch.zeros_like(latents)


@dataclass
class Unchanged(Intervention):
    """Leaves the latents as they are and remembers those of the last question."""

    last: Float[Tensor, "1 M hidden"] | None = field(default=None, init=False)

    def __call__(self, latents: Float[Tensor, "batch M hidden"]) -> Float[Tensor, "batch M hidden"]:
        """The latents as they came; the last question's are remembered for `Swapped`."""
        self.last = latents[-1:].clone()
        return latents


@dataclass
class Swapped(Intervention):
    """Each question gets another's latents: by `order` (row i those of row order[i]), else those of the question read before it.

    Without `order` it remembers the last latents from batch to batch, so rows may come in batches of any size; the very first
    question gets those that `after` has seen last. Without `after`, it gets those of the last one of its batch, and a first batch of one
    raises ValueError.
    """

    order: Int[Tensor, " batch"] | None = None
    after: Unchanged | None = None
    last: Float[Tensor, "1 M hidden"] | None = field(default=None, init=False)

    def __call__(self, latents: Float[Tensor, "batch M hidden"]) -> Float[Tensor, "batch M hidden"]:
        """Another row's latents."""
        if self.order is not None:
            return latents[self.order.to(latents.device)]
        if self.last is None and self.after is not None:
            self.last = self.after.last
        if self.last is None and len(latents) == 1:
            raise ValueError("latents cannot be swapped: the first batch has one question; read two or more at once")
        before = latents[-1:] if self.last is None else self.last
        self.last = latents[-1:].clone()
        return torch.cat([before, latents[:-1]])


@dataclass(frozen=True)
class Truncated(Intervention):
    """Only the first `tokens` latents are read; what follows moves up."""

    tokens: int

    def kept(self, tokens: int) -> int:
        """`self.tokens`; ValueError when there are not so many."""
        if not 0 <= self.tokens <= tokens:
            raise ValueError(f"truncated: {self.tokens} is not between 0 and the student's {tokens} latents")
        return self.tokens

    def __call__(self, latents: Float[Tensor, "batch M hidden"]) -> Float[Tensor, "batch kept hidden"]:
        """The first `self.tokens` of them."""
        return latents[:, : self.kept(latents.shape[1])]


class Condition(NamedTuple):
    """`kept`: how many latents stay."""

    name: str
    kept: int
    intervention: Intervention


def conditions(tokens: int) -> list[Condition]:
    """All conditions of a student with that many latents, to be asked in this order: unchanged, zeroed, swapped (the first question gets
    the latents of the last), halved and cut to none."""
    unchanged = Unchanged()
    return [
        Condition("none", tokens, unchanged),
        Condition("zeroed", tokens, Zeroed()),
        Condition("swapped", tokens, Swapped(after=unchanged)),
        *(Condition("truncated", kept, Truncated(kept)) for kept in sorted({tokens // 2, 0}, reverse=True)),
    ]
