"""Everything a look at a study reads, gathered once: output files, checkpoints, Snakemake's notes and SLURM's queue.

Checkpoints (`mtkv.checkpointing.store`) are the stages' own word: manifest, lock and progress of each.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mtkv.checkpointing.lock import is_stale, read_lock
from mtkv.ops.slurm.queue import QueuedJob, queue
from mtkv.ops.status.jobs import Job
from mtkv.ops.status.snakemake_log import Alive, Event, alive, read_logs, started_outputs

OWN = {"started", "done_at_start", "done", "total", "unit", "updated"}


@dataclass(frozen=True)
class Progress:
    """How far a stage is, by its own progress file; `facts`: what else that holds (loss, gpu_memory_mb, gpu_utilisation, …)."""

    done: int
    total: int
    unit: str
    rate: float | None  # `unit`s per second since this attempt began; None at its first report
    updated: datetime | None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """One folder of checkpoints. `holder`: what its lock says of a living writer; None when nobody is writing."""

    folder: Path
    outputs: tuple[str, ...]
    finished: bool
    holder: dict[str, Any] | None
    progress: Progress | None


def read_saved(root: Path, study: str) -> dict[str, Saved]:
    """Output → the checkpoints of the job that makes it: of several the one being written, else the newest."""
    found: dict[str, Saved] = {}
    for manifest in sorted([*root.glob("*/manifest.json"), *root.glob("*/*/manifest.json")], key=_modified):
        run = (_read(manifest) or {}).get("run", {})
        if run.get("study") == study:
            saved = _saved(manifest.parent, tuple(run.get("outputs", ())))
            for output in saved.outputs:
                if output not in found or found[output].holder is None:
                    found[output] = saved
    return found


def _saved(folder: Path, outputs: tuple[str, ...]) -> Saved:
    lock = read_lock(folder / "lock.json")
    holder = None if lock is None or is_stale(lock) else lock
    progress = _progress(_read(folder / "progress.json"))
    return Saved(folder, outputs, (folder / "finished.json").exists(), holder, progress)


def _progress(said: dict[str, Any] | None) -> Progress | None:
    if not said or not {"done", "total"} <= said.keys():
        return None
    started, updated = _time(said.get("started")), _time(said.get("updated"))
    rate = None
    if started and updated and updated > started:
        rate = (said["done"] - said.get("done_at_start", 0)) / (updated - started).total_seconds()
    facts = {name: value for name, value in said.items() if name not in OWN}
    return Progress(said["done"], said["total"], said.get("unit", ""), rate or None, updated, facts)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _modified(manifest: Path) -> float:
    """When the stage last reported progress, else wrote its manifest (time stamp)."""
    progress = manifest.with_name("progress.json")
    try:
        return (progress if progress.exists() else manifest).stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0


@dataclass(frozen=True)
class StatusEvidence:
    """What was found below `folder`, the folder of the workflow. `queue` None: SLURM is not here or does not answer."""

    folder: Path
    present: frozenset[str] = frozenset()
    saved: dict[str, Saved] = field(default_factory=dict)
    started: dict[str, str | None] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    queue: dict[str, QueuedJob] | None = None
    snakemake: Alive = "no"
    host: str | None = None

    def event(self, job: Job) -> Event | None:
        """The last event of a job in Snakemake's logs."""
        return self.events.get(job.outputs[0])


def gather(folder: Path, study: str, jobs: Iterable[Job]) -> StatusEvidence:
    """Read everything once. Folders are listed instead of asking for each file, which is much faster on a network file system."""
    internal = folder / ".snakemake"
    notes = read_logs(internal / "log")
    queued = queue(folder)
    return StatusEvidence(
        folder,
        _present(folder, {output for job in jobs for output in job.outputs}),
        read_saved(folder / "checkpoints", study),
        started_outputs(internal),
        notes.events,
        None if queued is None else {job.id: job for job in queued},
        alive(internal, notes.host),
        notes.host,
    )


def _present(folder: Path, outputs: set[str]) -> frozenset[str]:
    there: set[str] = set()
    for parent in {output.rpartition("/")[0] for output in outputs}:
        try:
            with os.scandir(folder / parent) as entries:
                there.update(f"{parent}/{entry.name}" for entry in entries)
        except OSError:
            continue
    return frozenset(outputs & there)
