"""Config files and their overlays: later files are merged over the first one, as Snakemake merges `--configfile`.

Mappings are merged, all else is replaced. null as the value of an arm, a teacher or a claim deletes that entry.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from mtkv.config.errors import ConfigError, Loc, Problem, show
from mtkv.config.raw_tree import plain_tree

# Sections whose keys are names that the user chooses.
ENTRY_SECTIONS: tuple[Loc, ...] = (("arms",), ("teachers", "models"), ("claims",))


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` merged into `base`, which stays as it is."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def without_deleted(config: dict[str, Any]) -> dict[str, Any]:
    """`config` without the entries whose value is null, and without all claims where that section itself is null."""
    config = {key: value for key, value in config.items() if (key, value) != ("claims", None)}
    for loc in ENTRY_SECTIONS:
        config = _drop_nulls(config, loc)
    return config


def read_overlaid(*paths: str | Path) -> dict[str, Any]:
    """The first YAML file with the others merged over it. Raises ConfigError naming the file for what cannot be read."""
    config: dict[str, Any] = {}
    for path in paths:
        config = merged(config, read_yaml(path))
    return config


def read_yaml(path: str | Path) -> dict[str, Any]:
    """One YAML file, which holds a mapping or nothing. Raises ConfigError."""
    try:
        with open(path, encoding="utf-8") as file:
            value = yaml.load(file, Loader=_Loader)
    except FileNotFoundError:
        raise _file_error(path, "no such file") from None
    except OSError as error:
        raise _file_error(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _file_error(path, "is not UTF-8 text") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _file_error(path, f"is not valid YAML: {_one_line(error)}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _file_error(path, f"holds {show(value)}, not a mapping")
    try:
        return plain_tree(value)
    except ConfigError as error:
        raise ConfigError([Problem((), f"{path}: {problem}") for problem in error.problems]) from None


class _Loader(yaml.SafeLoader):
    """YAML that refuses what PyYAML would misread silently: a key given twice, and numbers in a base other than ten."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                message = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> int | float:
        """A decimal number. Raises for 010 (8 in YAML), 0x1f, 0b1 and 1:30 (90)."""
        value: int | float = yaml.constructor.SafeConstructor.yaml_constructors[node.tag](self, node)
        if re.match(r"[-+]?0[0-9_xb]", node.value) or ":" in node.value:
            message = f"{node.value} means {value} there; write {value}, or {node.value!r} in quotes if it is text"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        return value


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_decimal)


def _drop_nulls(config: dict[str, Any], loc: Loc) -> dict[str, Any]:
    key = str(loc[0]) if loc else None
    if key is None:
        return {name: entry for name, entry in config.items() if entry is not None}
    section = config.get(key)
    return config | {key: _drop_nulls(section, loc[1:])} if isinstance(section, dict) else config


def _file_error(path: str | Path, message: str) -> ConfigError:
    return ConfigError([Problem((), f"{path}: {message}")])


def _one_line(error: Exception) -> str:
    """PyYAML's message with its place, on one line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or str(error)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return " ".join(text.split()) + place
