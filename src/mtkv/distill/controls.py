"""Control twins: the same supervision with its content made wrong (method.md §9), so that a gain of content shows against them.

Of the matches of an arm's rows `shuffle_items` takes another row's teacher KV and `shuffle_time` the row's own in another order. The
controls that change the KV itself or the loss (`gaussian`, `zero_weight`, `projector_only`) are in `mtkv.distill.kv_objective`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from mtkv.distill.row_match import RowMatch


def controlled(true: Sequence[RowMatch], control: str, seed: int) -> Iterable[RowMatch]:
    """The matches as the arm's control changes them (`CONTROLS`, method.md §9), one after the other; `true` itself where it changes
    none. Raises ValueError when nothing is matched."""
    if not any(len(match.position) for match in true):
        raise ValueError("no token of any row is matched with a token of every teacher of this arm")
    return CONTROLS[control](true, np.random.default_rng(seed)) if control in CONTROLS else true


def shuffle_items(matches: Sequence[RowMatch], rng: np.random.Generator) -> Iterator[RowMatch]:
    """Another row's teacher KV for every row (method.md §9): one fixed partner each, never the row itself.

    The supervised positions stay the row's own; the r-th takes the partner's r-th matched token (from its first again where it has
    fewer), so amount, order and statistics of the supervision are those of the true arm and only its content is wrong.
    """
    partner = partners([len(match.position) for match in matches], rng)
    for index, match in enumerate(matches):
        yield match if partner[index] == index else _with_tokens_of(match, matches[partner[index]])


def partners(supervised: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """For each row the number of the row whose tokens it gets `[rows]`: one random cycle through the rows with supervised tokens.

    Rows without any keep to themselves: [3, 0, 2] supervised tokens give [2, 1, 0].
    """
    partner = np.arange(len(supervised))
    order = rng.permutation(np.flatnonzero(supervised))
    partner[order] = np.roll(order, 1)
    return partner


def shuffle_time(matches: Sequence[RowMatch], rng: np.random.Generator) -> Iterator[RowMatch]:
    """The row's own teacher KV at permuted tokens."""
    for match in matches:
        yield _reordered(match, match, rng.permutation(len(match.position)))


CONTROLS: dict[str, Callable[[Sequence[RowMatch], np.random.Generator], Iterable[RowMatch]]] = {
    "shuffle_items": shuffle_items,
    "shuffle_time": shuffle_time,
}


def _with_tokens_of(match: RowMatch, partner: RowMatch) -> RowMatch:
    """The positions of `match`, supervised by the tokens of `partner` one after the other, from the first again where it has fewer."""
    return _reordered(match, partner, np.arange(len(match.position)) % len(partner.position))


def _reordered(match: RowMatch, source: RowMatch, order: np.ndarray) -> RowMatch:
    """The positions of `match`, supervised by the tokens of `source` in the given order."""
    tokens, weight = ([part[order] for part in parts] for parts in (source.tokens, source.weight))
    return RowMatch(source.row, match.position, tokens, weight)
