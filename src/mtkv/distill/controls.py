"""Control twins: the same supervision with its content made wrong (method.md §9), so that a gain of content shows against them.

Of the matches of an arm's rows `shuffle_items` takes another row's teacher KV and `shuffle_time` the row's own in another order. The
controls that change the KV itself or the loss (`gaussian`, `zero_weight`, `projector_only`) are in `mtkv.distill.kv_objective`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mtkv.distill.row_match import RowMatch


def controlled(true: list[RowMatch], control: str, seed: int) -> list[RowMatch]:
    """The matches as the arm's control changes them (`CONTROLS`, method.md §9). Raises ValueError when nothing is matched."""
    check_matched([len(match.position) for match in true])
    return CONTROLS.get(control, _keep)(true, np.random.default_rng(seed))


def check_matched(supervised: Sequence[int]) -> None:
    """Raises ValueError when no row has a supervised token."""
    if not any(supervised):
        raise ValueError("no token of any row is matched with a token of every teacher of this arm")


def _keep(matches: list[RowMatch], rng: np.random.Generator) -> list[RowMatch]:
    return matches


def shuffle_items(matches: list[RowMatch], rng: np.random.Generator) -> list[RowMatch]:
    """Another row's teacher KV for every row (method.md §9): one fixed partner each, never the row itself.

    The supervised positions stay the row's own; the r-th takes the partner's r-th matched token (from its first again where it has
    fewer), so amount, order and statistics of the supervision are those of the true arm and only its content is wrong.
    """
    partner = partners([len(match.position) for match in matches], rng)
    return [
        match if partner[index] == index else with_tokens_of(match, matches[partner[index]])
        for index, match in enumerate(matches)
    ]


def partners(supervised: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """For each row the number of the row whose tokens it gets `[rows]`: one random cycle through the rows with supervised tokens.

    Rows without any keep to themselves: [3, 0, 2] supervised tokens give [2, 1, 0].
    """
    partner = np.arange(len(supervised))
    order = rng.permutation(np.flatnonzero(supervised))
    partner[order] = np.roll(order, 1)
    return partner


def shuffle_time(matches: list[RowMatch], rng: np.random.Generator) -> list[RowMatch]:
    """The row's own teacher KV at permuted tokens."""
    return [in_permuted_time(match, rng) for match in matches]


def in_permuted_time(match: RowMatch, rng: np.random.Generator) -> RowMatch:
    """The positions of `match`, supervised by its own tokens in random order."""
    return _reordered(match, match, rng.permutation(len(match.position)))


CONTROLS: dict[str, Callable[[list[RowMatch], np.random.Generator], list[RowMatch]]] = {
    "shuffle_items": shuffle_items,
    "shuffle_time": shuffle_time,
}


def with_tokens_of(match: RowMatch, partner: RowMatch) -> RowMatch:
    """The positions of `match`, supervised by the tokens of `partner` one after the other, from the first again where it has fewer."""
    return _reordered(match, partner, np.arange(len(match.position)) % len(partner.position))


def _reordered(match: RowMatch, source: RowMatch, order: np.ndarray) -> RowMatch:
    """The positions of `match`, supervised by the tokens of `source` in the given order."""
    tokens, weight = ([part[order] for part in parts] for parts in (source.tokens, source.weight))
    return RowMatch(source.row, match.position, tokens, weight)
