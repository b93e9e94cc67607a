"""Saved states in a checkpoint's folder: `step-00000123`, each whole or not there at all.

A step is complete when its `complete.json`, written last, names all its files with size and sha256 and they match.
"""

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from mtkv.provenance.digest import file_digest
from mtkv.provenance.files import atomic_path, read_json, write_json

NAME = re.compile(r"step-(\d{8,})")
COMPLETE = "complete.json"
OLD = 3600.0  # seconds


def steps(folder: Path) -> dict[int, Path]:
    """The step folders by number, in order, complete or not."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def is_complete(step: Path) -> bool:
    """Whether every file of the step is there as it was written. Reads all of them."""
    try:
        listed = read_json(step / COMPLETE)["files"]
        there = {str(path.relative_to(step)) for path in _files(step)}
        return there == set(listed) and all(
            (step / name).stat().st_size == facts["size"] and file_digest(step / name) == facts["sha256"]
            for name, facts in listed.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_step(
    folder: Path, number: int, write: Callable[[Path], object], needed: int | None, check: Callable[[], None]
) -> Path:
    """`write` a step into a temporary folder, make it durable and only then give it its name; `check` may raise before that.

    Raises DiskFullError, and leaves nothing, when there is no room (for `needed` bytes, where they are known).
    """
    path = folder / f"step-{number:08d}"
    with atomic_path(path, needed) as temporary:
        temporary.mkdir()
        write(temporary)
        files = {
            str(file.relative_to(temporary)): {"size": file.stat().st_size, "sha256": file_digest(file)}
            for file in _files(temporary)
        }
        for file in files:
            _sync(temporary / file)
        write_json(temporary / COMPLETE, {"files": files})
        _sync(temporary / COMPLETE)
        for inner in [*(path for path in temporary.rglob("*") if path.is_dir()), temporary]:
            _sync(inner)
        check()
        replaced = folder / f".{path.name}.replaced"
        if path.exists():  # a death between the two renames leaves the old one where `remove_leftovers` finds it
            path.rename(replaced)
    _sync(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left half done, put back what they were about to replace. Only for the holder of the folder's lock."""
    for old in folder.glob(".step-*.replaced"):
        step = folder / old.name.removeprefix(".").removesuffix(".replaced")
        if step.exists():
            shutil.rmtree(old)
        else:
            old.rename(step)
    for path in folder.glob(".*.tmp"):
        if path.name.startswith(".step-"):
            shutil.rmtree(path, ignore_errors=True)
        elif not path.name.startswith(".lock.json") or time.time() - path.stat().st_mtime > OLD:
            path.unlink(missing_ok=True)  # others may be about to ask for the lock


def _files(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file() and path != step / COMPLETE)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
