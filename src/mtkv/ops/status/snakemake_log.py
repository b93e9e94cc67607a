"""What Snakemake's own notes in `.snakemake` say: of each job (`read_logs`), and whether a run is under way (`alive`).

`log/<time>.snakemake.log` is written by each run of Snakemake 9. A job is known in it by a number of that run; here events are keyed
by the job's first output, so that several runs add up and later logs win. A failed job's log that is shown in it may be that of another
Snakemake, inside a SLURM job, which counts its jobs anew: such text is skipped.
`incomplete/` holds one file per output that a started job has not finished, named by the base64 of its path (in parts where
that is long), with the job's id in SLURM until it starts there.
`locks/` is not empty while Snakemake runs, or after it was killed; but of two runs in one folder the first to end removes the other's
locks too.
"""

import base64
import binascii
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

Alive = Literal["here", "unlocked", "elsewhere", "killed", "no"]


def started_outputs(folder: Path) -> dict[str, str | None]:
    """Outputs being made now, or when Snakemake was killed → the job's id in SLURM while it waits there, else None."""
    incomplete = folder / "incomplete"
    found: dict[str, str | None] = {}
    for path in incomplete.rglob("*") if incomplete.is_dir() else ():
        try:
            name = "".join(part.removeprefix("@") for part in path.relative_to(incomplete).parts)
            if path.is_file():
                note = json.loads(path.read_text(encoding="utf-8"))
                found[base64.urlsafe_b64decode(name).decode()] = note["external_jobid"]
        except (OSError, ValueError, KeyError, TypeError, binascii.Error):
            continue  # removed or half-written meanwhile, or not Snakemake's
    return found


def alive(folder: Path, host: str | None, processes: Path = Path("/proc")) -> Alive:
    """Whether Snakemake works in the parent of `folder` (.snakemake). `host`: where its latest log says it ran.

    here: a process of this machine has the lock. unlocked: a process works without its lock. elsewhere: the lock is of another host.
    killed: there is a lock and no process. no: neither.
    """
    locks = folder / "locks"
    if not locks.is_dir() or not any(locks.glob("*.lock")):
        return "unlocked" if _log_is_written(folder.resolve() / "log", processes) else "no"
    if host is not None and host != socket.gethostname():
        return "elsewhere"
    return "here" if _process_in(folder.resolve().parent, processes) else "killed"


def _process_in(folder: Path, processes: Path) -> bool:
    """Whether a process of this machine whose command line names snakemake works in `folder`."""
    if not processes.is_dir():  # not Linux: only the lock can tell
        return True
    for process in _others(processes):
        with suppress(OSError):  # ended meanwhile, or another user's
            if b"snakemake" in (process / "cmdline").read_bytes() and (process / "cwd").readlink() == folder:
                return True
    return False


def _log_is_written(logs: Path, processes: Path) -> bool:
    """Whether a process of this machine has a file in `logs` open: a Snakemake at work (one that only plans or unlocks writes none)."""
    for process in _others(processes) if processes.is_dir() else ():
        with suppress(OSError):
            for file in (process / "fd").iterdir():
                with suppress(OSError):  # closed meanwhile
                    if file.readlink().parent == logs:
                        return True
    return False


def _others(processes: Path) -> Iterator[Path]:
    return (path for path in processes.iterdir() if path.name.isdigit() and int(path.name) != os.getpid())


State = Literal["started", "finished", "failed"]
LATEST = 10
START = re.compile(r"^ *(?:local)?(?:rule|checkpoint) (\w+):$")
ERROR = re.compile(r"^ *Error in rule (\w+)(?:, jobid: \d+)?:?$")
FAILED_GROUP = "    jobs:"  # heads the members of a failed group, listed like rules that start
FIELD = re.compile(r"^ +(jobid|output|log): (.+)$")
FINISHED = re.compile(r"^ *Finished jobid: (\d+) \(Rule: (\w+)\)")
SHOWN = re.compile(r"^ *Logfile .+:$")
RULED = re.compile(r"^=+$")
SENT = re.compile(r"^Job (\d+) has been submitted with SLURM jobid (\S+) \(log: (.+)\)\.$")
SENT_ARRAY = re.compile(r"^Submitted array job with Snakemake IDs ([\d,]+) and SLURM job ID (\d+)\..* are (\d+)-\d+\.$")
HOST = re.compile(r"^ *Host: (\S+)$")


@dataclass(frozen=True)
class Event:
    """The last thing a log says of one job. `logs`: files to read, the job's own first; `slurm`: its id in SLURM's queue."""

    state: State
    rule: str
    output: str
    logs: tuple[str, ...] = ()
    slurm: str | None = None


@dataclass
class Notes:
    """Events by the job's first output; host and log file of the latest run of Snakemake."""

    events: dict[str, Event] = field(default_factory=dict)
    host: str | None = None
    path: Path | None = None


def read_logs(folder: Path, latest: int = LATEST) -> Notes:
    """The events of the `latest` runs in `folder` (.snakemake/log); empty without logs."""
    notes = Notes()
    for path in sorted(folder.glob("*.snakemake.log"))[-latest:]:
        with path.open(encoding="utf-8", errors="replace") as lines:
            _read_run(lines, notes)
        notes.path = path
    return notes


def _read_run(lines: Iterable[str], notes: Notes) -> None:
    """Add one run's events to `notes`."""
    jobs: dict[str, Event] = {}
    block: dict[str, str] | None = None
    failed_group = False
    for line in _own_lines(lines):
        failed_group = line == FAILED_GROUP or (failed_group and line.startswith(" "))
        if found := ERROR.match(line) or START.match(line):
            failed = failed_group or found.re is ERROR
            block = {"rule": found[1], "state": "failed" if failed else "started"}
        elif block is not None and (found := FIELD.match(line)):
            block[found[1]] = found[2]
        elif block is not None and not line.startswith(" "):
            block = None
        if block is not None and {"jobid", "output"} <= block.keys():
            _note(notes, jobs, block["jobid"], _event(block, jobs))
        elif (found := FINISHED.match(line)) and found[1] in jobs and jobs[found[1]].rule == found[2]:
            _note(notes, jobs, found[1], replace(jobs[found[1]], state="finished"))
        elif found := SENT.match(line):
            _sent(notes, jobs, found[1], found[2], found[3])
        elif found := SENT_ARRAY.match(line):
            for task, number in enumerate(found[1].split(","), start=int(found[3])):
                _sent(notes, jobs, number, f"{found[2]}_{task}")
        elif found := HOST.match(line):
            notes.host = found[1]


def _own_lines(lines: Iterable[str]) -> Iterator[str]:
    """The lines without the logs of failed jobs that are shown in them: a heading, a line of =, the text, a line of =."""
    rules_left = 0
    for line in (raw.rstrip("\n") for raw in lines):
        if rules_left:
            rules_left -= bool(RULED.match(line))
        elif SHOWN.match(line):
            rules_left = 2
        else:
            yield line


def _event(block: dict[str, str], jobs: dict[str, Event]) -> Event:
    logs = tuple(block["log"].partition(" (check log")[0].split(", ")) if "log" in block else ()
    before = jobs.get(block["jobid"]) if block["state"] == "failed" else None
    if before:
        logs = tuple(dict.fromkeys([*logs, *before.logs]))
    state: State = "failed" if block["state"] == "failed" else "started"
    return Event(state, block["rule"], block["output"].split(", ")[0], logs, before.slurm if before else None)


def _note(notes: Notes, jobs: dict[str, Event], number: str, event: Event) -> None:
    """Keep an event, unless this run gave its number or its output to another job: then a Snakemake inside a job wrote it."""
    if number not in jobs and any(known.output == event.output for known in jobs.values()):
        return
    if number in jobs and jobs[number].output != event.output:
        return
    jobs[number] = event
    notes.events[event.output] = event


def _sent(notes: Notes, jobs: dict[str, Event], number: str, slurm: str, log: str | None = None) -> None:
    if event := jobs.get(number):
        logs = tuple(dict.fromkeys([*event.logs, *([log] if log else [])]))
        _note(notes, jobs, number, replace(event, slurm=slurm, logs=logs))
