"""How many rows each source gives: the Chinese ones a share of all, and within a language equal parts as far as they reach."""

from collections.abc import Collection, Mapping


def quotas(total: int, available: Mapping[str, int], chinese: Collection[str], share: float) -> dict[str, int]:
    """Rows of each source. `share` of `total` comes from the sources in `chinese`, the rest from the others.

    A source that has less than its part gives all it has, and the others of its language more. Where a language has too few, or
    no sources at all, the other one fills up; the sum is less than `total` only when all is used.
    """
    groups = ({name for name in available if name in chinese}, {name for name in available if name not in chinese})
    room = [sum(available[name] for name in group) for group in groups]
    first = min(round(total * share), room[0]) if groups[1] else min(total, room[0])
    second = min(total - first, room[1])
    first = min(total - second, room[0])
    parts = _even(first, {name: available[name] for name in available if name in groups[0]})
    parts |= _even(second, {name: available[name] for name in available if name in groups[1]})
    return {name: parts[name] for name in available}


def _even(total: int, available: Mapping[str, int]) -> dict[str, int]:
    """`total` in parts as equal as `available` allows; earlier sources get the odd ones."""
    parts = dict.fromkeys(available, 0)
    left = min(total, sum(available.values()))
    while left:
        open_sources = [name for name in available if parts[name] < available[name]]
        each = max(1, left // len(open_sources))
        for name in open_sources[:left]:
            more = min(each, available[name] - parts[name])
            parts[name] += more
            left -= more
    return parts
