"""One look at a study: the states of its jobs, the time left and the logs to read, as plain values for the screen and for JSON."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkv.ops.status.evidence import gather
from mtkv.ops.status.jobs import RULES, jobs_of
from mtkv.ops.status.remaining_time import RemainingTime, estimate
from mtkv.ops.status.snakemake_log import Alive
from mtkv.ops.status.states import STATES, Status, states_of

if TYPE_CHECKING:
    from mtkv.config.study import Study

TAIL = 8192


@dataclass(frozen=True)
class Look:
    """A study at one moment. `slurm`: whether its queue could be read; `host`: where Snakemake last ran."""

    study: str
    folder: Path
    statuses: list[Status]
    estimate: RemainingTime
    snakemake: Alive
    host: str | None
    slurm: bool
    when: datetime

    def counts(self) -> dict[str, Counter[str]]:
        """Jobs by rule and state, in the order of the stages."""
        found: dict[str, Counter[str]] = {rule: Counter() for rule in RULES}
        for status in self.statuses:
            found[status.job.rule][status.state] += 1
        return {rule: counted for rule, counted in found.items() if counted}

    def of(self, *states: str) -> list[Status]:
        """The jobs in any of these states."""
        return [status for status in self.statuses if status.state in states]


def look(study: "Study", folder: Path = Path(), at_once: int | None = None) -> Look:
    """Look at a study in the folder of the workflow; only reads. `at_once`: jobs at once to assume for the time left."""
    jobs = jobs_of(study)
    evidence = gather(folder, study.study, jobs)
    statuses = states_of(jobs, evidence)
    return Look(
        study.study,
        folder.resolve(),
        statuses,
        estimate(folder, statuses, at_once),
        evidence.snakemake,
        evidence.host,
        evidence.queue is not None,
        datetime.now(UTC),
    )


def last_words(folder: Path, logs: tuple[str, ...]) -> tuple[str, str]:
    """(log, last line) of the first of a job's logs that is not empty: for a Python program that failed, the error."""
    for log in logs:
        try:
            with (folder / log).open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - TAIL))
                lines = file.read().decode("utf-8", errors="replace").split("\n")
        except OSError:
            continue
        if words := [line.strip() for line in lines if line.strip()]:
            return log, words[-1]
    return (logs[0] if logs else ""), ""


def as_json(look: Look) -> dict[str, Any]:
    """The look as JSON-able values."""
    return {
        "study": look.study,
        "when": look.when.isoformat(timespec="seconds"),
        "snakemake": look.snakemake,
        "snakemake_host": look.host,
        "slurm": look.slurm,
        "jobs": {rule: {state: counts[state] for state in STATES} for rule, counts in look.counts().items()},
        "eta_seconds": look.estimate.seconds,
        "eta_jobs_at_once": look.estimate.at_once,
        "eta_leaves_out": list(look.estimate.unknown),
        "details": [_detail(look.folder, status) for status in look.of(*STATES[1:5])],
    }


def _detail(folder: Path, status: Status) -> dict[str, Any]:
    log, words = last_words(folder, status.logs) if status.state in ("failed", "stopped") else ("", "")
    progress = status.progress
    return {
        "rule": status.job.rule,
        "wildcards": status.job.wildcards,
        "state": status.state,
        "place": status.place,
        "note": status.note,
        "elapsed_seconds": status.elapsed,
        "progress": progress
        and {"done": progress.done, "total": progress.total, "unit": progress.unit, "per_second": progress.rate}
        | progress.facts,
        "logs": list(status.logs),
        "read": log,
        "last_line": words,
    }
