"""Everything a look at a study reads, gathered once: files, checkpoints, Snakemake's notes and SLURM's queue."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mtkv.status.jobs import Job
from mtkv.status.notes import Alive, alive, started_outputs
from mtkv.status.saved import Saved, read_saved
from mtkv.status.slurm import QueuedJob, queue
from mtkv.status.snakemake_log import Event, read_logs


@dataclass(frozen=True)
class Evidence:
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
        """What Snakemake's logs last said of a job."""
        return self.events.get(job.outputs[0])


def gather(folder: Path, study: str, jobs: Iterable[Job]) -> Evidence:
    """Look at everything once. Each folder of outputs is listed once, which on a network file system is much less than asking per file."""
    internal = folder / ".snakemake"
    notes = read_logs(internal / "log")
    queued = queue(folder)
    return Evidence(
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
