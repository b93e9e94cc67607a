"""Which process this is, and whether another one still runs."""

import os
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

PROC = Path("/proc")


def this_process() -> dict[str, Any]:
    """pid, host and SLURM job of this process, with what tells it from a later one of the same pid."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "machine": _machine(),
        "process_start": _start(os.getpid()),
    }


def is_running(facts: Mapping[str, Any]) -> bool | None:
    """Whether the process of these facts runs on this machine; None where that cannot be known from here."""
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
    """This boot of the machine and its table of processes: containers share a host's name but not its pids."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink(PROC / 'self/ns/pid')}"
    except OSError:
        return ""


def _start(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None for one that has ended, waited for by its parent or not."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
