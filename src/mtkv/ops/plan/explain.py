"""Why one target runs: the jobs with causes of their own, what changed for each, and the chain from each down to the target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtkv.ops.cost_model.past_runs import card_of, size_on_disk
from mtkv.ops.planned_jobs import Cause, PlannedJob
from mtkv.ops.rerun_reasons import CODE, CodeChange, code_change
from mtkv.provenance.code_digest import covered
from mtkv.provenance.digest import path_digest

NOT_HASHED = 100_000_000  # bytes; larger inputs are named without comparing digests


@dataclass(frozen=True)
class Explained:
    """A job that runs for causes of its own: sentences about them, and the chain of jobs from it to the target, both included."""

    job: PlannedJob
    sentences: tuple[str, ...]
    chain: tuple[PlannedJob, ...]


def explain(jobs: Sequence[PlannedJob], target: str, folder: Path = Path()) -> list[Explained]:
    """The causes behind `target`, earlier jobs first; empty when nothing has to run.

    `jobs`: of a dry run for the target. A target that no job writes (rule all) stands for the jobs whose outputs no other job reads.
    """
    read = {number for job in jobs for number in job.above}
    below = _below(
        jobs, [job for job in jobs if target in job.outputs] or [job for job in jobs if job.number not in read]
    )
    return [
        Explained(job, tuple(sentence for cause in own for sentence in _sentences(cause, job, folder)), _chain(job, below))
        for job in jobs
        if job.number in below and job.runs and (own := [cause for cause in job.causes if not cause.derived])
    ]  # fmt: skip


def _below(jobs: Sequence[PlannedJob], last: Sequence[PlannedJob]) -> dict[int, PlannedJob | None]:
    """Job number → the next job on a shortest way to one of `last` (None for these), for every job that they depend on."""
    known = {job.number: job for job in jobs}
    found: dict[int, PlannedJob | None] = {job.number: None for job in last}
    queue = list(last)
    while queue:
        job = queue.pop(0)
        for number in job.above:
            if number in known and number not in found:
                found[number] = job
                queue.append(known[number])
    return found


def _chain(job: PlannedJob, below: Mapping[int, PlannedJob | None]) -> tuple[PlannedJob, ...]:
    chain, following = [job], below[job.number]
    while following is not None:
        chain.append(following)
        following = below[following.number]
    return tuple(chain)


def _sentences(cause: Cause, job: PlannedJob, folder: Path) -> list[str]:
    if cause.kind == "config":
        return [f"config: {change.path}: {short(change.old)} → {short(change.new)}" for change in cause.changes]
    if cause.kind == "code":
        return _of_code(cause, job, folder)
    if cause.kind == "input":
        return [_of_input(path, job, folder) for path in cause.files] + [
            f"input: {change.path} is {'read now' if change.old is None else 'no longer read'}" for change in cause.changes
        ]  # fmt: skip
    said = {"new": "was never made", "missing": "was made once and is gone", "incomplete": "was left by a killed job"}
    return [f"{cause.kind}: {path} {said[cause.kind]}" for path in cause.files]


def _of_code(cause: Cause, job: PlannedJob, folder: Path) -> list[str]:
    if cause.files:
        return [f"code: the script {path} is newer than the outputs" for path in cause.files]
    card = card_of(folder, job.card) or {}
    change = next(change for change in cause.changes if change.path == CODE)
    stage = covered(str(change.new))
    git = card.get("git") or {}
    if stage is None:
        return [f"code: digest {change.old} → {change.new}"]
    found = code_change(stage, git.get("revision"), git.get("dirty"))
    return [f"code: digest {change.old} → {change.new}", *_of_modules(found)]


def _of_modules(change: CodeChange) -> list[str]:
    since = f"since {change.revision[:8]}" if change.revision else ""
    told = [f"code: {name} differs {since}" for name in (*change.modules, *change.files)]
    told += [f"code: {name} is new {since}" for name in change.added]
    told += [f"code: package {pin.path} in requirements.lock: {pin.old} → {pin.new}" for pin in change.pins]
    if not told and change.revision and not change.note:
        told.append(f"code: no module of the stage differs {since}; the run used another package or lock file")
    return told + ([f"code: {change.note}"] if change.note else [])


def _of_input(path: str, job: PlannedJob, folder: Path) -> str:
    before = (card_of(folder, job.card) or {}).get("inputs", {}).get(path)
    file = folder / path
    if before is None or not file.exists() or size_on_disk(file) > NOT_HASHED:
        return f"input: {path} is newer than the outputs"
    now = path_digest(file)
    if now == before:
        return f"input: {path} is newer than the outputs, with the same content"
    return f"input: {path} changed: sha256 {before[:12]} → {now[:12]}"


def short(value: Any, length: int = 120) -> str:
    """A value as text, cut where it is long."""
    text = "absent" if value is None else repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
