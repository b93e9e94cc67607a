"""Digests of the code a stage runs, so that Snakemake reruns what a change of the library really touches.

`code_digest("mtkv.distill.train")` hashes the abstract syntax tree, without comments and docstrings, of that module and of
every mtkv module it imports, directly or not, together with the pins in `requirements.lock` of the third-party packages
those modules import. Left out on purpose: `mtkv.config` (its effect on a result is the validated values, which are `params`
of the rule already), `mtkv.provenance` (it records, it does not compute), imports for type checking only, and the re-exports of a
package's `__init__` when a submodule is imported directly.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
RECORDING_ONLY = ("mtkv.config", "mtkv.provenance")
# Import name -> distribution name, where they differ.
DISTRIBUTIONS = {"lm_eval": "lm-eval", "yaml": "pyyaml"}


def code_digest(*modules: str, data: tuple[str, ...] = ()) -> str:
    """16 hex digits over the code that `modules` run and over the package files matching the globs in `data`.

    `data` holds globs relative to the package folder ("evaluate/tasks/*.yaml"), for files that steer a stage but are not Python.
    Raises ValueError for a module that does not exist.
    """
    hashed = hashlib.sha256()
    closure = _closure(modules)
    for name in sorted(closure):
        hashed.update(f"{name} {_module_digest(name)}\n".encode())
    for pin in sorted(_pins(closure)):
        hashed.update(f"{pin}\n".encode())
    for path in sorted(path for pattern in data for path in PACKAGE_FOLDER.glob(pattern)):
        hashed.update(path.name.encode() + path.read_bytes())
    return hashed.hexdigest()[:16]


def stage_modules(*modules: str) -> list[str]:
    """The mtkv modules that `code_digest(*modules)` covers, sorted."""
    return sorted(_closure(modules))


def digest_of(value: Any) -> str:
    """16 hex digits over canonical JSON: the same settings give the same digest, in whatever key order they were written.

    `value` is a pydantic model, a path, a JSON-able value, or a nesting of these. Raises TypeError or ValueError for anything
    that JSON cannot hold.
    """
    text = json.dumps(value, default=_plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot digest a {type(value).__name__}: {value!r}")


def file_digest(path: str | Path) -> str:
    """sha256 hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _closure(modules: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    queue = list(modules)
    for name in queue:
        if _module_path(name) is None:
            raise ValueError(f"code digest: {name!r} is not a module of mtkv")
    while queue:
        name = queue.pop()
        if name in found:
            continue
        found.add(name)
        queue.extend(imported for imported in _imports(name) if imported.startswith("mtkv"))
    return found


def _pins(modules: set[str]) -> set[str]:
    pins = _lock_pins()
    used = {imported.split(".")[0] for name in modules for imported in _imports(name)}
    return {pins[key] for name in used if (key := _normalise(DISTRIBUTIONS.get(name, name))) in pins}


@cache
def _lock_pins() -> dict[str, str]:
    lock = PACKAGE_FOLDER.parents[1] / "requirements.lock"
    if not lock.exists():  # an installed wheel has no lock file beside it
        return {}
    lines = (line.split("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines())
    return {_normalise(line.split("==")[0]): line for line in lines if "==" in line}


def _normalise(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@cache
def _module_path(name: str) -> Path | None:
    parts = name.split(".")
    if parts[0] != "mtkv":
        return None
    base = PACKAGE_FOLDER.joinpath(*parts[1:])
    if (base / "__init__.py").is_file():
        return base / "__init__.py"
    return base.with_suffix(".py") if len(parts) > 1 and base.with_suffix(".py").is_file() else None


@cache
def _tree(name: str) -> ast.Module:
    """The module's syntax tree without docstrings."""
    path = _module_path(name)
    assert path is not None, name
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


@cache
def _module_digest(name: str) -> str:
    return hashlib.sha256(ast.dump(_tree(name)).encode()).hexdigest()


@cache
def _imports(name: str) -> frozenset[str]:
    """Every module `name` imports at run time: mtkv modules by full name, others by top-level name."""
    package = name if (path := _module_path(name)) and path.name == "__init__.py" else name.rpartition(".")[0]
    found = {imported for node in _run_time_nodes(_tree(name)) for imported in _imported(node, package)}
    return frozenset(
        imported for imported in found if not any(imported == r or imported.startswith(r + ".") for r in RECORDING_ONLY)
    )


def _run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _run_time_nodes(node)


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name if _module_path(alias.name) else alias.name.split(".")[0]
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, *([base] if base else [])])
        if _module_path(base) is None:
            yield base.split(".")[0]
            return
        for alias in node.names:
            submodule = f"{base}.{alias.name}"
            yield submodule if _module_path(submodule) else base
