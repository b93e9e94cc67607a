"""`extends`: an arm starts from another arm's written entry, and what it writes itself is merged over that."""

from dataclasses import dataclass, field
from typing import Any

from mtkv.config.errors import Problem, unknown
from mtkv.config.overlay import merged

NOT_INHERITED = ("description", "extends")


@dataclass
class Inheritance:
    """What `resolve` returns: resolved entries by arm, each arm's ancestors from parent to root, and problems of those left out."""

    arms: dict[str, Any] = field(default_factory=dict)
    ancestors: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def resolve(written: dict[str, Any]) -> Inheritance:
    """Resolve `extends` of all arms of the raw section `arms` (`{name: entry as written}`).

    An arm in a cycle or with an unknown parent gets a problem; arms below it are left out without one of their own.
    """
    result = Inheritance()
    cycles: set[frozenset[str]] = set()
    for name in written:
        chain = _chain(name, written)
        last, parent = chain[-1], _parent(written[chain[-1]])
        if parent is None:
            result.arms[name] = _merged_chain([written[arm] for arm in reversed(chain)])
            result.ancestors[name] = chain[1:]
        elif parent not in written and last == name:
            result.problems.append(Problem(("arms", name, "extends"), unknown(parent, "an arm", written)))
        elif parent in chain and frozenset(cycle := chain[chain.index(parent) :]) not in cycles:
            cycles.add(frozenset(cycle))
            text = " → ".join([*cycle, parent])
            result.problems.append(Problem(("arms", cycle[0], "extends"), f"{cycle[0]!r} extends itself: {text}"))
    return result


def _chain(name: str, written: dict[str, Any]) -> list[str]:
    """The arm, its parent, grandparent …, up to a root, to an arm whose parent is unknown, or to the end of a cycle."""
    chain = [name]
    while (parent := _parent(written[chain[-1]])) in written and parent not in chain:
        chain.append(str(parent))
    return chain


def _parent(entry: Any) -> str | None:
    parent = entry.get("extends") if isinstance(entry, dict) else None
    return parent if isinstance(parent, str) else None


def _merged_chain(entries: list[Any]) -> Any:
    """Entries from root to arm, merged. Entries that are no mappings are left to validation."""
    result = entries[0]
    for entry in entries[1:]:
        if not isinstance(result, dict) or not isinstance(entry, dict):
            return entry
        inherited = {key: value for key, value in result.items() if key not in NOT_INHERITED}
        result = merged(_without_stale_weights(inherited, entry), entry)
    return result


# Fields of `fusion` that only one strategy reads.
OF_STRATEGY = {"fixed": ("weights",), "task": ("by_task",), "learnable": ("objective", "router", "per_layer")}


def _without_stale_weights(inherited: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """What only another strategy reads is not handed down to an arm that switches to one of its own."""
    strategy = _fusion(entry).get("strategy")
    if strategy is None or not _fusion(inherited):
        return inherited
    stale = {field for other, of in OF_STRATEGY.items() if other != strategy for field in of}
    kv = inherited["kv"]
    kept = {key: value for key, value in kv["fusion"].items() if key not in stale}
    return inherited | {"kv": kv | {"fusion": kept}}


def _fusion(entry: dict[str, Any]) -> dict[str, Any]:
    kv = entry.get("kv")
    fusion = kv.get("fusion") if isinstance(kv, dict) else None
    return fusion if isinstance(fusion, dict) else {}
