"""The state of each job: sources of evidence (`WITNESSES`) are asked from the best informed on; the first that knows decides.

done: its outputs are there. running: it is being made. queued: SLURM has it. failed: Snakemake's log says so and nothing runs it.
stopped: begun, not finished, and nobody is at it (killed, preempted, out of time). waiting: not begun.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from mtkv.ops.slurm.queue import QueuedJob
from mtkv.ops.status.evidence import Progress, StatusEvidence
from mtkv.ops.status.jobs import Job

State = Literal["done", "running", "queued", "failed", "stopped", "waiting"]
STATES: tuple[State, ...] = ("done", "running", "queued", "failed", "stopped", "waiting")


@dataclass(frozen=True)
class Status:
    """One job's state. `place`: where it runs or waits; `elapsed`: seconds on its node, by SLURM; `logs`: what to read."""

    job: Job
    state: State
    place: str = ""
    progress: Progress | None = None
    elapsed: float | None = None
    logs: tuple[str, ...] = ()
    note: str = ""


Witness = Callable[[Job, StatusEvidence], Status | None]


def states_of(jobs: Iterable[Job], evidence: StatusEvidence) -> list[Status]:
    """The state of each job, in the order given."""
    return [_state(job, evidence) for job in jobs]


def _state(job: Job, evidence: StatusEvidence) -> Status:
    found = (witness(job, evidence) for witness in WITNESSES)
    return next((status for status in found if status is not None), Status(job, "waiting"))


def _lock_holder(job: Job, evidence: StatusEvidence) -> Status | None:
    """Running, if its checkpoints have a living writer."""
    saved = evidence.saved.get(job.outputs[0])
    if saved is None or saved.holder is None:
        return None
    slurm, host = saved.holder.get("slurm_job_id"), saved.holder.get("host")
    place = f"SLURM {slurm} on {host}" if slurm else f"pid {saved.holder.get('pid')} on {host}"
    queued = (evidence.queue or {}).get(str(slurm))
    return Status(job, "running", place, saved.progress, queued.elapsed if queued else None, _logs(job, evidence))


def _slurm(job: Job, evidence: StatusEvidence) -> Status | None:
    """Running or queued, as SLURM's queue has it, by the id in Snakemake's log or in its marker of the output."""
    event = evidence.event(job)
    known = event.slurm if event and event.state == "started" else None
    queued = (evidence.queue or {}).get(known or evidence.started.get(job.outputs[0]) or "")
    if queued is None:
        return None
    saved = evidence.saved.get(job.outputs[0])
    # A member of a group has no id in the log, and one in the marker only until it begins.
    if queued.running and known is None:
        return Status(job, "queued", f"SLURM {queued.id} ({queued.partition})", note="waits for others of its group")
    if queued.running:
        place = f"SLURM {queued.id} ({queued.partition})"
        return Status(job, "running", place, saved.progress if saved else None, queued.elapsed, _logs(job, evidence))
    return Status(job, "queued", f"SLURM {queued.id} ({queued.partition})", note=_why(queued))


def _marker(job: Job, evidence: StatusEvidence) -> Status | None:
    """Running or queued, by Snakemake's marker of an unfinished output, as long as there is somebody who can be making it."""
    if job.outputs[0] not in evidence.started:
        return None
    slurm = evidence.started[job.outputs[0]]
    if slurm is not None and evidence.queue is None:
        return Status(job, "queued", f"SLURM {slurm}", note="SLURM does not answer here")
    made = [entry.id for entry in (evidence.queue or {}).values() if entry.running and entry.may_run(job.rule)]
    if slurm is None and made:
        return Status(job, "running", f"SLURM {made[0]}", logs=_logs(job, evidence))
    if evidence.snakemake not in ("here", "unlocked", "elsewhere"):
        return None
    note = f"SLURM {slurm} has left the queue; Snakemake has not noticed yet" if slurm else ""
    return Status(job, "running", f"on {evidence.host}" if evidence.host else "", logs=_logs(job, evidence), note=note)


def _outputs(job: Job, evidence: StatusEvidence) -> Status | None:
    """Done, if all outputs are there and none is marked as unfinished."""
    whole = evidence.present.issuperset(job.outputs) and evidence.started.keys().isdisjoint(job.outputs)
    return Status(job, "done") if whole else None


def _error(job: Job, evidence: StatusEvidence) -> Status | None:
    """Failed, if an error is the last that Snakemake's log says of it."""
    event = evidence.event(job)
    if event is None or event.state != "failed":
        return None
    return Status(job, "failed", progress=_last_progress(job, evidence), logs=_logs(job, evidence))


def _leftovers(job: Job, evidence: StatusEvidence) -> Status | None:
    """Stopped, if something shows that it was begun: checkpoints, a marker, a start without an end in the log."""
    saved, event = evidence.saved.get(job.outputs[0]), evidence.event(job)
    begun = event is not None and event.state == "started"
    if not (saved and not saved.finished) and job.outputs[0] not in evidence.started and not begun:
        return None
    where = f"goes on from {saved.folder}" if saved and not saved.finished else "begins anew"
    return Status(job, "stopped", "", _last_progress(job, evidence), logs=_logs(job, evidence), note=where)


WITNESSES: tuple[Witness, ...] = (_lock_holder, _slurm, _marker, _outputs, _error, _leftovers)


def _last_progress(job: Job, evidence: StatusEvidence) -> Progress | None:
    saved = evidence.saved.get(job.outputs[0])
    return saved.progress if saved and not saved.finished else None


def _logs(job: Job, evidence: StatusEvidence) -> tuple[str, ...]:
    event = evidence.event(job)
    return tuple(dict.fromkeys([job.log, *(event.logs if event else ())]))


def _why(queued: QueuedJob) -> str:
    return queued.reason if queued.reason not in ("", "None") else queued.state.lower()
