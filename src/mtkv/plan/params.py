"""Which field of a job's params changed, from what to what.

Snakemake keeps of each run the texts (repr) of the params, without their names. Here they are read back and given the names of the
params of today that resemble them most.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mtkv.plan.jobs import Change

CODE = "code"
DIGEST = re.compile(r"[0-9a-f]{16}")


def read_back(text: str) -> Any:
    """The plain value behind a repr; the text itself where it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def named(recorded: Iterable[str], today: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded params by the names of today's. A name without a counterpart is absent."""
    left = Counter(recorded)
    found: dict[str, Any] = {}
    for name, value in today.items():
        if left[text := repr(value)] > 0:
            left[text] -= 1
            found[name] = value
    old = [read_back(text) for text in left.elements()]
    scores = sorted(
        ((_likeness(name, value, candidate), name, place) for name, value in today.items() if name not in found
         for place, candidate in enumerate(old)),
        key=lambda entry: -entry[0],
    )  # fmt: skip
    used: set[int] = set()
    for score, name, place in scores:
        if score > 0 and name not in found and place not in used:
            found[name] = old[place]
            used.add(place)
    return found


def changes(old: Any, new: Any, path: str) -> Iterator[Change]:
    """Every leaf in which two nested values differ, with its dotted path below `path`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from changes(old.get(key), new.get(key), f"{path}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and any(_nested(x) for x in old):
        for place, pair in enumerate(zip(old, new, strict=True)):
            yield from changes(*pair, f"{path}[{place}]")
    elif repr(old) != repr(new):
        yield Change(path, old, new)


def param_changes(recorded: Iterable[str], today: Mapping[str, Any]) -> list[Change]:
    """What differs between a recorded run's params and today's, `code` included."""
    before = named(recorded, today)
    return [change for name, value in today.items() for change in changes(before.get(name), value, name)]


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping | list)


def _likeness(name: str, value: Any, candidate: Any) -> float:
    """0: of another kind. 2: leaf by leaf equal. A digest of code resembles nothing but another one."""
    is_digest = isinstance(candidate, str) and DIGEST.fullmatch(candidate) is not None
    if (name == CODE) != is_digest:
        return 0.0
    if isinstance(value, Mapping) and isinstance(candidate, Mapping):
        keys = {*value, *candidate}
        common = sum(key in value and key in candidate for key in keys)
        equal = sum(repr(value.get(key)) == repr(candidate.get(key)) for key in keys)
        return (common + equal) / len(keys) if keys else 2.0
    if isinstance(value, bool) or isinstance(candidate, bool):
        return float(type(value) is type(candidate))
    if isinstance(value, int | float) and isinstance(candidate, int | float):
        return 1.0
    if value is None or candidate is None:
        return 0.1
    return float(type(value) is type(candidate))
