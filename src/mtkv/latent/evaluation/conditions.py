"""The conditions under which a latent student is asked, to see whether its answers depend on its latents."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mtkv.latent.model.interventions import Intervention, Swapped, Truncated, Zeroed


@dataclass
class Unchanged:
    """Leaves the latents as they are and remembers those of the last question."""

    last: Float[Tensor, "1 M hidden"] | None = field(default=None, init=False)

    def kept(self, tokens: int) -> int:
        """All `tokens` of them: none is cut off."""
        return tokens

    def __call__(self, latents: Float[Tensor, "batch M hidden"]) -> Float[Tensor, "batch M hidden"]:
        """The latents as they came; the last question's are remembered for `swapped`."""
        self.last = latents[-1:].clone()
        return latents


@dataclass(frozen=True)
class Condition:
    """`kept`: how many latents stay; `intervention` makes what changes them, given the `Unchanged` of the first condition, which has
    seen all questions. `needs_others`: whether it needs two questions."""

    name: str
    kept: int
    intervention: Callable[[Unchanged], Intervention]
    needs_others: bool = False


def conditions(tokens: int) -> list[Condition]:
    """All conditions of a student with that many latents, the unchanged one first; halved and cut to none at the end."""
    cuts = sorted({tokens // 2, 0}, reverse=True)
    return [
        Condition("none", tokens, lambda unchanged: unchanged),
        Condition("zeroed", tokens, lambda _: Zeroed()),
        Condition("swapped", tokens, swapped, needs_others=True),
        *(Condition("truncated", kept, _cut(kept)) for kept in cuts),
    ]


def _cut(kept: int) -> Callable[[Unchanged], Intervention]:
    return lambda _: Truncated(kept)


def swapped(unchanged: Unchanged) -> Swapped:
    """Each question gets the latents of the one before it, the first those of the last: also when questions are read one by one."""
    made = Swapped()
    made.last = None if unchanged.last is None else torch.clone(unchanged.last)
    return made
