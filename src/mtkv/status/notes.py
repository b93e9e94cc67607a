"""Snakemake's other notes in `.snakemake`: outputs that are being made, and whether a run is under way.

`incomplete/` holds one file per output that a started job has not finished, named by the base64 of its path (in parts where
that is long), with the id of the job in SLURM until the job starts there. `locks/` is not empty while Snakemake runs, or after it was
killed; but of two runs in one folder the first to end removes the other's locks too. `log/` holds the file that each run writes.
"""

import base64
import binascii
import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

Alive = Literal["here", "unlocked", "elsewhere", "killed", "no"]


def started_outputs(folder: Path) -> dict[str, str | None]:
    """Outputs that are being made or were when Snakemake was killed, with their job's id in SLURM while it waits there."""
    incomplete = folder / "incomplete"
    found: dict[str, str | None] = {}
    for path in incomplete.rglob("*") if incomplete.is_dir() else ():
        try:
            name = "".join(part.removeprefix("@") for part in path.relative_to(incomplete).parts)
            if path.is_file():
                note = json.loads(path.read_text(encoding="utf-8"))
                found[base64.urlsafe_b64decode(name).decode()] = note["external_jobid"]
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            binascii.Error,
        ):  # removed or half-written meanwhile, or not Snakemake's
            continue
    return found


def alive(folder: Path, host: str | None, processes: Path = Path("/proc")) -> Alive:
    """Whether Snakemake works in the parent of `folder`. `host`: where its latest log says it ran.

    here: a process of this machine. unlocked: the same, without its lock. elsewhere: there is a lock, made on another host. killed: there
    is a lock and no process.
    """
    locks = folder / "locks"
    if not locks.is_dir() or not any(locks.glob("*.lock")):
        return "unlocked" if _log_is_written(folder.resolve() / "log", processes) else "no"
    if host is not None and host != socket.gethostname():
        return "elsewhere"
    return "here" if _process_in(folder.resolve().parent, processes) else "killed"


def _process_in(folder: Path, processes: Path) -> bool:
    """Whether a process of this machine whose command line names snakemake works in `folder`."""
    if not processes.is_dir():  # not Linux: the lock is all there is to go by
        return True
    for process in _others(processes):
        with suppress(OSError):  # ended meanwhile, or another user's
            if b"snakemake" in (process / "cmdline").read_bytes() and (process / "cwd").readlink() == folder:
                return True
    return False


def _log_is_written(logs: Path, processes: Path) -> bool:
    """Whether a process of this machine has a file in `logs` open: a Snakemake at work; one that only plans or unlocks writes none."""
    for process in _others(processes) if processes.is_dir() else ():
        with suppress(OSError):
            for file in (process / "fd").iterdir():
                with suppress(OSError):  # closed meanwhile
                    if file.readlink().parent == logs:
                        return True
    return False


def _others(processes: Path) -> Iterator[Path]:
    return (path for path in processes.iterdir() if path.name.isdigit() and int(path.name) != os.getpid())
