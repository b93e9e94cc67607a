"""Checks of a config's raw form: nothing but mappings with text keys, lists, text, numbers, booleans and null, of finite depth.

What passes can be merged, validated and printed without surprises.
"""

from collections.abc import Mapping
from typing import Any

from mtkv.config.errors import ConfigError, Loc, Problem, show

MAX_DEPTH = 30
MAX_BITS = 63  # no setting needs larger whole numbers, and they break conversion to float


def plain_tree(config: Any) -> dict[str, Any]:
    """`config` as a deep copy of plain dicts and lists. Raises ConfigError with all that is not plain."""
    if not isinstance(config, Mapping):
        raise ConfigError([Problem((), f"the config is {show(config)}, not a mapping")])
    problems: list[Problem] = []
    tree = _copy(config, (), frozenset(), problems)
    if problems:
        raise ConfigError(problems)
    return tree


def _copy(value: Any, loc: Loc, parents: frozenset[int], problems: list[Problem]) -> Any:
    if message := _refusal(value, loc, parents):
        problems.append(Problem(loc, message))
        return None
    below = parents | {id(value)}
    if isinstance(value, Mapping):
        bad = [key for key in value if not isinstance(key, str) or not _encodes(key)]
        problems.extend(Problem(loc, f"key {show(key)} is not text; put it in quotes or rename it") for key in bad)
        good = {key: item for key, item in value.items() if key not in bad}
        return {key: _copy(item, (*loc, key), below, problems) for key, item in good.items()}
    if isinstance(value, list | tuple):
        return [_copy(item, (*loc, index), below, problems) for index, item in enumerate(value)]
    return value


def _refusal(value: Any, loc: Loc, parents: frozenset[int]) -> str | None:
    """Why `value` cannot stand in a config, or None."""
    if id(value) in parents:
        return "the value contains itself"
    if len(loc) > MAX_DEPTH:
        return f"nested more than {MAX_DEPTH} levels deep"
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return "the number is too large"
    if isinstance(value, str) and not _encodes(value):
        return f"{show(value)} is not valid Unicode text"
    if value is not None and not isinstance(value, Mapping | list | tuple | str | int | float):
        return f"{show(value)} is not text, a number, a list or a mapping; put text in quotes"
    return None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
