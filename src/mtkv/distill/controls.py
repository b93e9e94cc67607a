"""Control twins: the same supervision with its content made wrong (method.md §9), so that a gain of content shows against them.

A `Control` says what it changes: whose tokens supervise a row, their order, the KV themselves, or what the KV term counts.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtkv.distill.row_match import RowMatch
from mtkv.registry import registered


@dataclass(frozen=True)
class Control:
    """What one control changes: the matches, by one of the first three, and what the others say.

    `row(match, rng)`: a row's match, row by row. `partner(supervised, rng)`: from the numbers of supervised tokens `[rows]`, the number of
    the row whose tokens each row gets. `matches(matches, rng)`: all of them, in memory or on disk, for the new ones one after the other.
    `values(kv)`: the teachers' KV, of about unit spread. `weight`: a factor of the KV loss. `map_only`: the KV loss trains the map and not
    the student. `random_direction`: the student gets a gradient of the KV loss's norm in a random direction. `own`: the student's own KV
    stand in the teachers' place (`kv.transfer: inject`).
    """

    row: Callable[[RowMatch, np.random.Generator], RowMatch] | None = None
    partner: Callable[[Sequence[int], np.random.Generator], np.ndarray] | None = None
    matches: Callable[[Sequence[RowMatch], np.random.Generator], Iterable[RowMatch]] | None = None
    values: Callable[[Tensor], Tensor] | None = None
    weight: float = 1.0
    map_only: bool = False
    random_direction: bool = False
    own: bool = False

    def __post_init__(self) -> None:
        if sum(change is not None for change in (self.row, self.partner, self.matches)) > 1:
            raise ValueError("a Control changes the matches in one way: give row, partner or matches")

    def __call__(self, true: Sequence[RowMatch], rng: np.random.Generator) -> Iterable[RowMatch]:
        """The matches of all rows, changed one after the other; `true` itself where nothing is."""
        if self.matches:
            return self.matches(true, rng)
        if self.row:
            change = self.row
            return (change(match, rng) for match in true)
        if self.partner:
            whose = self.partner([len(match.position) for match in true], rng)
            return (
                match if whose[index] == index else _with_tokens_of(match, true[whose[index]])
                for index, match in enumerate(true)
            )
        return true


def control_of(name: str) -> Control:
    """The control of that name. One's own is a `Control`, or a function as its `matches`.

    Raises ValueError for an unknown name and for a control that changes nothing.
    """
    found = registered(CONTROLS, name)
    control = found if isinstance(found, Control) else Control(matches=found)
    if name != "none" and control == CONTROLS["none"]:
        raise ValueError(f"control {name!r} changes nothing: give its Control a field (row, partner, values, weight …)")
    return control


def controlled(true: Sequence[RowMatch], control: str, seed: int) -> Iterable[RowMatch]:
    """The matches as the arm's control changes them (`CONTROLS`, method.md §9), one after the other; `true` itself where it changes
    none. Raises ValueError when nothing is matched."""
    if not any(len(match.position) for match in true):
        raise ValueError("no token of any row is matched with a token of every teacher of this arm")
    return control_of(control)(true, np.random.default_rng(seed))


def partners(supervised: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """For each row the number of the row whose tokens it gets `[rows]`: one random cycle through the rows with supervised tokens.

    Rows without any keep to themselves: [3, 0, 2] supervised tokens give [2, 1, 0]. The supervised positions stay the row's own; the r-th
    takes the partner's r-th matched token (from its first again where it has fewer), so amount, order and statistics of the supervision
    are those of the true arm and only its content is wrong (method.md §9).
    """
    partner = np.arange(len(supervised))
    order = rng.permutation(np.flatnonzero(supervised))
    partner[order] = np.roll(order, 1)
    return partner


def in_permuted_time(match: RowMatch, rng: np.random.Generator) -> RowMatch:
    """The positions of `match`, supervised by its own tokens in random order."""
    return _reordered(match, match, rng.permutation(len(match.position)))


def gaussian(kv: Tensor) -> Tensor:
    """Noise in place of the KV."""
    return torch.randn(kv.shape, device=kv.device)


CONTROLS: dict[str, Control] = {
    "none": Control(),
    "shuffle_items": Control(partner=partners),
    "shuffle_time": Control(row=in_permuted_time),
    "gaussian": Control(values=gaussian),
    "zero_weight": Control(weight=0.0),
    "projector_only": Control(map_only=True),
    "random_direction": Control(random_direction=True),
    "self": Control(own=True),
    "zeros": Control(values=torch.zeros_like),
}


def _with_tokens_of(match: RowMatch, partner: RowMatch) -> RowMatch:
    """The positions of `match`, supervised by the tokens of `partner` one after the other, from the first again where it has fewer."""
    return _reordered(match, partner, np.arange(len(match.position)) % len(partner.position))


def _reordered(match: RowMatch, source: RowMatch, order: np.ndarray) -> RowMatch:
    """The positions of `match`, supervised by the tokens of `source` in the given order."""
    tokens, weight = ([part[order] for part in parts] for parts in (source.tokens, source.weight))
    return RowMatch(source.row, match.position, tokens, weight)
