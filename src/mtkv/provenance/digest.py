"""Digests of settings and of files, and the state of a folder of data."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


def digest_of(value: Any) -> str:
    """16 hex digits over canonical JSON: the same settings give the same digest, in whatever key order they were written.

    `value` is a pydantic model, a path, a JSON-able value, or a nesting of these. Raises TypeError or ValueError for anything
    that JSON cannot hold.
    """
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def canonical(value: Any) -> str:
    """The JSON that `digest_of` hashes: keys sorted, no blanks. Raises what `digest_of` raises."""
    return json.dumps(value, default=_plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot digest a {type(value).__name__}: {value!r}")


def file_digest(path: str | Path) -> str:
    """sha256 hex digest of a file's bytes, cached in the process by the file's path, inode, size and modification time."""
    state = os.stat(path)
    return _file_digest(str(path), state.st_ino, state.st_size, state.st_mtime_ns)


@cache
def _file_digest(path: str, inode: int, size: int, modified_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_digest(path: Path) -> str:
    """Digest of a file, or of a folder's files with their names."""
    if not path.is_dir():
        return file_digest(path)
    return digest_of({str(file.relative_to(path)): file_digest(file) for file in path.rglob("*") if file.is_file()})


def state_of(folder: str | None) -> list[list[str | int]]:
    """On what the data rule depends besides its settings: name, size and modification time (ns) of every data file below `folder`,
    sorted; nothing for None or no folder."""
    if folder is None:
        return []
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in DATA_SUFFIXES and path.is_file())
    return [[str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
