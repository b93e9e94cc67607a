"""Digests of the code a stage runs, so that Snakemake reruns what a change of the library really touches.

`code_digest("mtkv.stages.train")` hashes the abstract syntax tree, without comments and docstrings, of that module and of
every mtkv module it imports, directly or not, together with the pins in `requirements.lock` of the third-party packages
those modules import; with a part of a study also the modules of the user's own that it names (`mtkv.registry`). Left out on
purpose: `mtkv.config` (its effect on a result is the validated values, which are `params` of the rule already), `mtkv.provenance` (it
records, it does not compute), imports for type checking only, and the re-exports of a package's `__init__` when a submodule is
imported directly.
"""

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mtkv.provenance.files import write_json
from mtkv.registry import import_paths, source_file

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
RECORDING_ONLY = ("mtkv.config", "mtkv.provenance", "mtkv.checkpointing")
# Import name -> distribution name, where they differ.
DISTRIBUTIONS = {"lm_eval": "lm-eval", "yaml": "pyyaml"}


class ImportStatement(NamedTuple):
    """`from module import names` (`level` dots before it), or `import module` with no names."""

    module: str
    level: int
    names: tuple[str, ...]


class Covered(NamedTuple):
    """The arguments of a `code_digest`."""

    modules: tuple[str, ...]  # those of one's own that the config names among them
    data: tuple[str, ...]


class Parsed(NamedTuple):
    """What the digests need of one module's source; `source` is the sha256 of its bytes."""

    source: str
    digest: str
    imports: tuple[ImportStatement, ...]


_covered: dict[str, Covered] = {}


def code_digest(*modules: str, data: tuple[str, ...] = (), config: Any = None) -> str:
    """16 hex digits over the code that `modules` run and over the package files matching the globs in `data`.

    `config`, a part of a validated study: the modules that its import paths name are covered too, with what they import of their own
    folder or package.

    `data` holds globs relative to the package folder ("evaluate/tasks/*.yaml"), for files that steer a stage but are not Python.
    Raises ValueError for a module that does not exist.
    """
    hashed = hashlib.sha256()
    modules += _own_modules(config)
    closure = _closure(modules)
    for name in sorted(closure):
        hashed.update(f"{name} {_parsed(name).digest}\n".encode())
    for pin in sorted(_pins(closure)):
        hashed.update(f"{pin}\n".encode())
    for path in sorted(path for pattern in data for path in PACKAGE_FOLDER.glob(pattern)):
        hashed.update(path.name.encode() + path.read_bytes())
    digest = hashed.hexdigest()[:16]
    _covered[digest] = Covered(modules, data)
    return digest


def stage_modules(*modules: str) -> list[str]:
    """The mtkv modules that `code_digest(*modules)` covers, sorted."""
    return sorted(_closure(modules))


def covered(digest: str) -> Covered | None:
    """The modules and data globs behind a digest that this process has computed; None for any other digest."""
    return _covered.get(digest)


def module_file(name: str) -> Path | None:
    """The source file of a module that a digest covers; None where there is none."""
    return _module_path(name)


def source_digest(source: bytes) -> str:
    """Digest of the part of a module's source that counts: its syntax tree without comments and docstrings. Raises SyntaxError."""
    return hashlib.sha256(ast.dump(_without_docstrings(ast.parse(source))).encode()).hexdigest()


def stage_packages(*modules: str) -> set[str]:
    """Names, as in the lock file, of the pinned packages that `code_digest(*modules)` covers."""
    return {_normalise(pin.split("==")[0]) for pin in _pins(_closure(modules))}


def locked(text: str) -> dict[str, str]:
    """`{package: line}` of a lock file's text, with the package's name in normalised form."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {_normalise(line.split("==")[0]): line for line in lines if "==" in line}


def forget() -> None:
    """Empty the caches, so that the next call reads every source file anew: for a process in which the code changes."""
    for cached in (_closure, _lock_pins, _module_path, _remembered, _parsed, _imports):
        cached.cache_clear()


@cache
def _closure(modules: tuple[str, ...]) -> frozenset[str]:
    for name in modules:
        if _module_path(name) is None:
            raise ValueError(f"code digest: {name!r} is not a module of mtkv, nor one's own")
    found: set[str] = set()
    queue = list(modules)
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue.extend(imported for imported in _imports(name) if _module_path(imported))
    _remember({name: _parsed(name) for name in found if name.partition(".")[0] == "mtkv"})
    return frozenset(found)


def _pins(modules: frozenset[str]) -> set[str]:
    pins = _lock_pins()
    used = {imported.split(".")[0] for name in modules for imported in _imports(name)}
    return {pins[key] for name in used if (key := _normalise(DISTRIBUTIONS.get(name, name))) in pins}


@cache
def _lock_pins() -> dict[str, str]:
    lock = PACKAGE_FOLDER.parents[1] / "requirements.lock"
    if not lock.exists():  # an installed wheel has no lock file beside it
        return {}
    return locked(lock.read_text(encoding="utf-8"))


def _normalise(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@cache
def _module_path(name: str) -> Path | None:
    parts = name.split(".")
    if parts[0] != "mtkv":
        return _own_path(name)
    base = PACKAGE_FOLDER.joinpath(*parts[1:])
    if (base / "__init__.py").is_file():
        return base / "__init__.py"
    return base.with_suffix(".py") if len(parts) > 1 and base.with_suffix(".py").is_file() else None


_own: dict[
    str, Path
] = {}  # of modules that a config names: their package (its first name), and the folder that it lies in


def _own_modules(config: Any) -> tuple[str, ...]:
    """The modules that the import paths in `config` name, sorted. Raises ValueError for one that is not there."""
    modules = sorted({path.module for path in import_paths(config)})
    for name in modules:
        if (file := source_file(name)) is None:
            raise ValueError(f"code digest: there is no module {name!r}")
        if name.partition(".")[0] != "mtkv":
            _own[name.partition(".")[0]] = _root(name, file)
    return tuple(modules)


def _own_path(name: str) -> Path | None:
    """The source of a module of one of those packages, or that lies beside one which is not installed."""
    if not _own or name.partition(".")[0] in sys.stdlib_module_names:
        return None
    file = source_file(name)
    beside = {folder for folder in _own.values() if folder.name not in ("site-packages", "dist-packages")}
    return file if file and (name.partition(".")[0] in _own or _root(name, file) in beside) else None


def _root(name: str, file: Path) -> Path:
    """The folder in which the first package of module `name` lies."""
    return file.parents[name.count(".") + (file.name == "__init__.py")]


# Parsing the whole library takes two seconds. The result is cached on disk, as Python caches bytecode, by the source's sha256.
def _memory() -> Path:
    return PACKAGE_FOLDER / "__pycache__" / f"code.{sys.implementation.cache_tag}.json"


@cache
def _remembered() -> dict[str, Parsed]:
    try:
        lines = json.loads(_memory().read_text(encoding="utf-8"))
        return {
            name: Parsed(
                source, digest, tuple(ImportStatement(module, level, tuple(n)) for module, level, n in imports)
            )
            for name, (source, digest, imports) in lines.items()
        }
    except (OSError, ValueError, AttributeError, TypeError):  # absent, or not ours: parse
        return {}


def _remember(found: dict[str, Parsed]) -> None:
    known = _remembered()
    if found.items() <= known.items():
        return
    known.update(found)
    try:
        write_json(_memory(), known)
    except OSError:  # a package folder that is not ours to write to: parse again next time
        return


@cache
def _parsed(name: str) -> Parsed:
    path = _module_path(name)
    assert path is not None, name
    source = path.read_bytes()
    sha = hashlib.sha256(source).hexdigest()
    known = _remembered().get(name)
    if known is not None and known.source == sha:
        return known
    tree = _without_docstrings(ast.parse(source))
    statements = tuple(statement for node in _run_time_nodes(tree) for statement in _statements(node))
    return Parsed(sha, hashlib.sha256(ast.dump(tree).encode()).hexdigest(), statements)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _run_time_nodes(node)


def _statements(node: ast.AST) -> Iterator[ImportStatement]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield ImportStatement(alias.name, 0, ())
    elif isinstance(node, ast.ImportFrom):
        yield ImportStatement(node.module or "", node.level, tuple(alias.name for alias in node.names))


@cache
def _imports(name: str) -> frozenset[str]:
    """Every module `name` imports at run time: mtkv modules by full name, others by top-level name."""
    package = name if (path := _module_path(name)) and path.name == "__init__.py" else name.rpartition(".")[0]
    found = {imported for statement in _parsed(name).imports for imported in _imported(statement, package)}
    return frozenset(
        imported for imported in found if not any(imported == r or imported.startswith(r + ".") for r in RECORDING_ONLY)
    )


def _imported(statement: ImportStatement, package: str) -> Iterator[str]:
    base = statement.module
    if statement.level:
        parents = package.split(".")[: len(package.split(".")) - statement.level + 1]
        base = ".".join([*parents, *([base] if base else [])])
    if _module_path(base) is None:
        yield base.split(".")[0]
    elif not statement.names:
        yield base
    for imported in statement.names if _module_path(base) else ():
        submodule = f"{base}.{imported}"
        yield submodule if _module_path(submodule) else base
