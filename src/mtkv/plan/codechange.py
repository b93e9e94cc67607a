"""Which modules of a stage differ from those a past run used: the code that its card names by git revision, against the files of now.

Only what counts for the code digest is told: changes of comments and docstrings are not, nor are modules that the stage does not import.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mtkv.plan.jobs import Change
from mtkv.provenance import code
from mtkv.provenance.code import (
    Covered,
    locked,
    module_file,
    source_digest,
    stage_modules,
    stage_packages,
)

LOCK = "../../requirements.lock"
ReadOld = Callable[[str], bytes | None]


@dataclass(frozen=True)
class CodeChange:
    """`modules` with another syntax tree than at `revision`, those that are new since then, files that steer the stage, and pins.

    `note` says why the lists may be incomplete; empty when they are not.
    """

    revision: str | None
    modules: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    pins: tuple[Change, ...] = ()
    note: str = ""


def code_change(stage: Covered, revision: str | None, dirty: bool | None, package: Path | None = None) -> CodeChange:
    """What of a stage's code differs between a git revision and now. `dirty`: whether that run's tree had changes of its own."""
    package = package or code.PACKAGE_FOLDER
    if revision is None:
        return CodeChange(None, note="the run's card names no git revision")
    if git(package, "cat-file", "-e", f"{revision}^{{commit}}") is None:
        return CodeChange(revision, note="that revision is not in this checkout")

    def old(path: str) -> bytes | None:
        return git(package, "show", f"{revision}:./{path}")

    modules, added = _modules(stage, package, old)
    files = tuple(
        path.relative_to(package).as_posix()
        for pattern in stage.data
        for path in sorted(package.glob(pattern))
        if old(path.relative_to(package).as_posix()) != path.read_bytes()
    )
    note = "that run's tree had uncommitted changes, which are not known" if dirty else ""
    return CodeChange(revision, modules, added, files, _pins(stage, package, old), note)


def _modules(stage: Covered, package: Path, old: ReadOld) -> tuple[tuple[str, ...], tuple[str, ...]]:
    changed, added = [], []
    for name in stage_modules(*stage.modules):
        file = module_file(name)
        if file is None:
            continue
        path = package / file.relative_to(code.PACKAGE_FOLDER)
        before = old(path.relative_to(package).as_posix())
        if before is None:
            added.append(name)
        elif before != (now := path.read_bytes()) and source_digest(before) != source_digest(now):
            changed.append(name)
    return tuple(changed), tuple(added)


def _pins(stage: Covered, package: Path, old: ReadOld) -> tuple[Change, ...]:
    before, path = old(LOCK), package / LOCK
    if before is None or not path.is_file():
        return ()
    then, now = locked(before.decode()), locked(path.read_text(encoding="utf-8"))
    used = sorted(stage_packages(*stage.modules))
    return tuple(Change(name, then.get(name), now.get(name)) for name in used if then.get(name) != now.get(name))


def git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints in `folder`; None where it fails, or is not there."""
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, check=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
