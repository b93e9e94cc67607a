"""Names in a config that stand for code: an entry of one of this package's registries, or `module:name` of anybody's own module.

A registry is a dict literal at the top of its module (`SCORES` of `mtkv.kv.scores`); what an entry asks of earlier stages stands at its
function (`@needs("attention")`). Whoever only checks a config, as every parse of the Snakefile does, reads both from the source and runs
nothing, so torch is not imported; the stages `load` the code itself. One's own module may be installed, or lie beside the study's file or
in the working directory; it is found in that order.
"""

import ast
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

IMPORT_PATH = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
FOLDERS = "MTKV_PLUGINS"  # in the environment, so that the processes of all stages look where the study's file was read
T = TypeVar("T")


class ImportPath(str):
    """`package.module:name`. A class of its own, so that a validated config can be searched for them (`import_paths`)."""

    @property
    def module(self) -> str:
        """The module, in front of the colon."""
        return self.partition(":")[0]

    @property
    def name(self) -> str:
        """What is defined there."""
        return self.partition(":")[2]


def needs(*what: str) -> Callable[[T], T]:
    """Decorator of a function or class that a config may name, with what must be prepared for it.

    Selectors: "attention", which extraction then stores. Routers: "likelihood", "entropy" (`mtkv.kv.row_statistics`), likewise. Trained
    maps: "both sides" for a module that also maps the student (`project_student`). Write literal strings: they are read from the source.
    """
    return lambda thing: thing


def look_beside(files: Iterable[str | Path]) -> None:
    """Look for modules in the folders of these files too, in this process and those that it starts."""
    found = [*_folders(), *(str(Path(file).resolve().parent) for file in files)]
    os.environ[FOLDERS] = os.pathsep.join(dict.fromkeys(found))


def registered(table: Mapping[str, T], name: str) -> T:
    """The entry `name` of a registry, or what an import path names. Raises ValueError for neither."""
    if name in table:
        return table[name]
    if ":" not in name:
        raise ValueError(f"{name!r} is not one of {', '.join(table)}, nor module:name of your own")
    found: T = load(name)
    return found


def load(name: str) -> Any:
    """What the import path `name` names. Raises ValueError with the reason where there is no such thing."""
    if reason := trouble(name):
        raise ValueError(f"{name!r}: {reason}")
    path = ImportPath(name)
    file = source_file(path.module)
    root = str(file.parents[path.module.count(".") + (file.name == "__init__.py")]) if file else ""
    if root in _places() and root not in sys.path:
        sys.path.append(root)  # at the end: nothing that is installed is hidden
    return getattr(importlib.import_module(path.module), path.name)


def trouble(name: str) -> str:
    """Why an import path names nothing, and what to do; empty where it names something."""
    path = ImportPath(name)
    file = source_file(path.module)
    if file is None:
        top = path.module.partition(".")[0]
        return f"there is no module {path.module}; put {top}.py into {' or '.join(_places())}, or install its package"
    try:
        known = definitions(file)
    except (SyntaxError, ValueError, OSError) as error:
        return f"{file} cannot be read: {error}"
    if path.name not in known:
        return f"{file} defines no {path.name}; it defines {', '.join(known) or 'nothing'}"
    return ""


def source_file(module: str) -> Path | None:
    """The file of a module, found without running it or its packages; None where there is none."""
    top, *rest = module.split(".")
    try:
        spec = PathFinder.find_spec(top, [*sys.path, *_places()]) or find_spec(top)
    except ValueError:  # of __main__, for one
        return None
    name = top
    for part in rest:
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, spec.submodule_search_locations) if spec else None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def definitions(file: Path) -> dict[str, ast.AST]:
    """What a file defines at its top level, by name: functions, classes and the values of variables; not what it imports.

    Raises SyntaxError, ValueError or OSError for a file that cannot be read.
    """
    return _parsed(file, file.stat().st_mtime_ns)


@cache
def _parsed(file: Path, _written: int) -> dict[str, ast.AST]:
    found: dict[str, ast.AST] = {}
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
    return found


@dataclass(frozen=True)
class Registry:
    """The registry `table` of a module of this package, as its source shows it."""

    module: str
    table: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its entries."""
        return tuple(self._entries())

    def defined(self, name: str) -> ast.AST | None:
        """The definition behind a name: of an entry, or of one's own `module:name`; None for neither."""
        if ":" in name:
            file = source_file(ImportPath(name).module)
            return definitions(file).get(ImportPath(name).name) if file else None
        value = self._entries().get(name)
        return self._module().get(value.id, value) if isinstance(value, ast.Name) else value

    def needs(self, name: str) -> set[str]:
        """What the entry says it needs."""
        return {
            argument.value
            for decorator in getattr(self.defined(name), "decorator_list", ())
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).rpartition(".")[2] == "needs"
            for argument in decorator.args
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        }

    def keys_of(self, name: str, field: str) -> tuple[str, ...]:
        """The keys of the dict literal that the entry, a call, is given as its argument `field`."""
        arguments = {argument.arg: argument.value for argument in getattr(self.defined(name), "keywords", ())}
        return _keys(arguments[field])

    def _module(self) -> dict[str, ast.AST]:
        file = source_file(self.module)
        assert file is not None, self.module
        return definitions(file)

    def _entries(self) -> dict[str, ast.AST]:
        table = self._module()[self.table]
        return dict(zip(_keys(table), getattr(table, "values", ()), strict=True))


def _keys(table: ast.AST) -> tuple[str, ...]:
    if not isinstance(table, ast.Dict):
        raise TypeError(f"a registry must be a dict literal, not {ast.unparse(table)}")
    return tuple(ast.literal_eval(key) for key in table.keys if key is not None)


def import_paths(value: Any) -> Iterator[ImportPath]:
    """Every import path in a validated config or a part of it."""
    if isinstance(value, ImportPath):
        yield value
    elif isinstance(value, Mapping):
        for entry in (*value.keys(), *value.values()):
            yield from import_paths(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from import_paths(entry)
    elif hasattr(value, "model_fields_set"):
        yield from import_paths(vars(value))


def _folders() -> list[str]:
    return [folder for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder]


def _places() -> list[str]:
    return list(dict.fromkeys([*_folders(), os.getcwd()]))
