"""One writer at a time: a lock file with a heartbeat that works across the machines of a cluster.

The file is made by a hard link, which only one of several racers can win, on NFS too. It names its holder (`this_process`) and is renewed
in place through the holder's own file handle, so a holder that lost the lock cannot write over the lock of the next. Its age is the
difference of two modification times of one file server, so clocks that differ between machines do no harm.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROC = Path("/proc")


def this_process() -> dict[str, Any]:
    """pid, host and SLURM job of this process, with boot id and start time, which tell it from a later process of the same pid."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "machine": _machine(),
        "process_start": _start(os.getpid()),
    }


def is_running(facts: Mapping[str, Any]) -> bool | None:
    """Whether the process that `this_process` described still runs; None where it ran on another machine, which cannot be asked."""
    pid = facts.get("pid")
    if not isinstance(pid, int) or (facts.get("host"), facts.get("machine")) != (socket.gethostname(), _machine()):
        return None
    if not (PROC / "self/stat").exists():
        return _answers(pid)
    return _start(pid) is not None and _start(pid) == facts.get("process_start")


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@cache
def _machine() -> str:
    """Names the machine's boot and its table of processes: containers share a host's name but not its pids."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink(PROC / 'self/ns/pid')}"
    except OSError:
        return ""


def _start(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None for one that has ended, zombies included."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


INTERVAL = 15.0  # seconds between two heartbeats
MISSED = 4  # heartbeats after which a holder counts as dead
SIZE = 1024  # bytes of the file, always the same, so that it is renewed by one write


class LockedError(RuntimeError):
    """Another process holds the lock; the message says which, and what to do."""


class WriterLock:
    """Context manager: inside, this process is the only writer. The lock is `path`, a JSON file.

    The lock of a dead holder is taken over; a holder is dead when its process is gone on this machine, or when it missed `MISSED`
    heartbeats of `interval` seconds. Of a holder on another machine nothing is known at first: entering waits for its next heartbeat.
    Raises LockedError when a living holder does not leave within `patience` seconds.
    """

    def __init__(self, path: str | Path, *, interval: float = INTERVAL, patience: float = 0.0) -> None:
        self.path = Path(path)
        self._interval, self._patience = interval, patience
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._stop.clear()
        self._facts = this_process() | {"token": uuid.uuid4().hex, "interval": self._interval, "started": _now()}
        temporary = self.path.with_name(f".{self.path.name}.{self._facts['token']}.tmp")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            self._wait_for(temporary)
        except BaseException:
            os.close(self._file)
            raise
        finally:
            temporary.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat of {self.path}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._file)
        if (found := read_lock(self.path)) and found["token"] == self._facts["token"]:
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises LockedError when another process has taken this lock over, because no heartbeat was written for too long."""
        found = read_lock(self.path)
        if found is None or found["token"] != self._facts["token"]:
            now = "is gone" if found is None else f"was taken over by {_who(found)}"
            raise LockedError(
                f"{self.path} {now}: this process ({_who(self._facts)}) was silent for more than "
                f"{MISSED * self._interval:.0f} s; end it, the other one goes on from the last checkpoint"
            )

    def _wait_for(self, temporary: Path) -> None:
        start, first = time.monotonic(), None
        while True:
            self._write()
            try:
                return self._acquire(temporary, self.path)
            except LockedError:
                found = read_lock(self.path)
                beat = found and (found["token"], found["modified"])
                first = first or beat
                unheard = found is not None and found["running"] is None and beat == first
                if not unheard and time.monotonic() - start >= self._patience:
                    raise
                time.sleep(min(1.0, self._interval / 4))

    def _acquire(self, mine: Path, path: Path) -> None:
        """Make `mine` the file at `path`. Raises LockedError when a living holder has it."""
        while True:
            try:
                return os.link(mine, path)
            except FileExistsError:
                found = read_lock(path)
            if found is None:
                continue
            if not is_stale(found, os.stat(mine).st_mtime):
                raise LockedError(_refusal(path, found))
            # Only one process may take over; the right to do so is a lock of its own, which goes stale in the same way.
            guard = self.path.with_name(f".{self.path.name}.{found['token']}.takeover")
            self._acquire(mine, guard)
            try:
                if (again := read_lock(path)) and again["token"] == found["token"]:
                    spare = mine.with_suffix(".spare")  # `mine` is needed again when `path` is a guard
                    os.link(mine, spare)
                    os.replace(spare, path)
                    return None
            finally:
                guard.unlink(missing_ok=True)

    def _write(self) -> None:
        text = json.dumps(self._facts | {"heartbeat": _now()})
        os.pwrite(self._file, text.encode().ljust(SIZE - 1) + b"\n", 0)
        os.fsync(self._file)

    def _beat(self) -> None:
        while not self._stop.wait(self._interval):
            with suppress(OSError):  # a file server that is away for a while; `check` says whether the lock was lost
                self._write()


def read_lock(path: str | Path) -> dict[str, Any] | None:
    """The facts in a lock file, with `modified` (the file's time), `running` (see `is_running`) and `token`; None without a lock.

    A file that cannot be read as JSON has token "unknown" and no other facts.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text, modified = file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        facts = dict(json.loads(text))
    except (ValueError, TypeError):
        facts = {}
    return {"token": "unknown", "interval": INTERVAL} | facts | {"modified": modified, "running": is_running(facts)}


def is_stale(found: dict[str, Any], now: float | None = None) -> bool:
    """Whether the holder that `read_lock` found is dead; `now` is the time of the file server, else this machine's."""
    age = (time.time() if now is None else now) - float(found["modified"])
    return found["running"] is False or age > MISSED * float(found["interval"])


def _refusal(path: Path, found: dict[str, Any]) -> str:
    job = found.get("slurm_job_id")
    end = f"`scancel {job}`" if job else f"`kill {found.get('pid')}` on {found.get('host')}"
    return (
        f"{path.parent} is being written by {_who(found)}, last heartbeat {max(0.0, time.time() - found['modified']):.0f} s ago; "
        f"wait for it or end it ({end}); the lock of a dead writer is taken over by itself after "
        f"{MISSED * float(found['interval']):.0f} s"
    )


def _who(facts: dict[str, Any]) -> str:
    job = f"SLURM job {facts['slurm_job_id']}, " if facts.get("slurm_job_id") else ""
    return f"{job}pid {facts.get('pid')} on {facts.get('host')}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
