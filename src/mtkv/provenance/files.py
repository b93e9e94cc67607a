"""Atomic writing: a reader sees the old file or the whole new one, never half of it.

Every writer of the project goes through `atomic_path` (or a function below that does), so a killed job leaves at most a
hidden temporary file beside the target.
"""

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# The umask of this process. It can only be read by setting it: once, before there are threads that make files.
UMASK = os.umask(0o077)
os.umask(UMASK)


class DiskFullError(OSError):
    """There is no room for a file; the message names it, what it needs where that is known, and what is free."""


@contextmanager
def atomic_path(path: str | Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it when it fails.

    The block may create a file or a folder at the temporary path. A folder that stands at `path` is replaced. `needed`: bytes the
    block will write, where they are known. The result gets the permissions that the umask allows, also where a library (safetensors)
    made the file for its owner alone. Raises DiskFullError when the disk has less than `needed` bytes free or runs full inside the
    block: nothing partial remains and what stood at `path` stays.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    check_room(target, needed)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        _open_to_others(temporary)
        if temporary.is_dir() and target.exists():
            _remove(target)
        os.replace(temporary, target)
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise disk_full(target, needed) from error
    finally:
        _remove(temporary)


def check_room(path: Path, needed: int | None) -> None:
    """Raise DiskFullError when the disk of the folder of `path` has less than `needed` bytes free."""
    if needed is not None and needed > shutil.disk_usage(path.parent).free:
        raise disk_full(path, needed)


def disk_full(path: Path, needed: int | None = None) -> DiskFullError:
    """A DiskFullError whose message names `path`, the bytes it needs where known, and the bytes free."""
    amount = "" if needed is None else f" {needed:,} bytes are needed,"
    free = shutil.disk_usage(path.parent).free
    return DiskFullError(
        errno.ENOSPC, f"no space left on the disk:{amount} {free:,} bytes are free; nothing was written", str(path)
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, of Python's own or of a library (safetensors, Arrow), says that a disk or a quota is full."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(
        text in str(error)
        for text in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), f"os error {errno.ENOSPC}")
    )


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: JSON has no such numbers."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read one JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_parquet(path: str | Path, frame: "pd.DataFrame | pa.Table | Iterable[pd.DataFrame]") -> None:
    """Write a table, or frames of the same columns one at a time, as one parquet file, atomically and without their indices."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        if hasattr(frame, "to_parquet"):
            frame.to_parquet(temporary, index=False)
            return
        if isinstance(frame, pa.Table):
            pq.write_table(frame, temporary)
            return
        tables = (pa.Table.from_pandas(one, preserve_index=False) for one in frame)
        first = next(tables)
        with pq.ParquetWriter(temporary, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)


def parquet_note(path: str | Path, name: bytes) -> str | None:
    """What the metadata of a parquet file say under `name`; None where they say nothing."""
    import pyarrow.parquet as pq

    note = (pq.read_schema(path).metadata or {}).get(name)
    return None if note is None else note.decode()


def _open_to_others(path: Path) -> None:
    """Give a file, or a folder and all in it, at least the permissions of a new one: 0o666 or 0o777 without the umask."""
    for each in (path, *(path.rglob("*") if path.is_dir() else ())):
        mode = stat.S_IMODE(each.lstat().st_mode)
        usual = (0o777 if each.is_dir() else 0o666) & ~UMASK
        if mode | usual != mode:  # links have them all
            with suppress(PermissionError):  # a file system that has no permissions to give
                each.chmod(mode | usual)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
