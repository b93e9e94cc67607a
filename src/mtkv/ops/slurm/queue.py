"""The user's jobs in SLURM's queue (`queue`), and `ask`, which runs a program with a time limit.

Without SLURM, or when it does not answer, the queue is unknown (None), which is not the same as empty.
"""

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProgramOutput:
    """What a program printed. `code` None: it ran out of time and was killed."""

    code: int | None
    text: str
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether it exited with 0."""
        return self.code == 0


def ask(*command: str, timeout: float = 5) -> ProgramOutput | None:
    """Run a program and return its output; None where there is no such program. After `timeout` seconds it and its children are killed."""
    if shutil.which(command[0]) is None:
        return None
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
        )
    except OSError as refused:
        return ProgramOutput(127, "", str(refused))
    try:
        text, error = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return ProgramOutput(None, "")
    return ProgramOutput(process.returncode, text, error)


FORMAT = "%i|%T|%M|%P|%r|%Z|%k"
RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED", "PREEMPTED")


@dataclass(frozen=True)
class QueuedJob:
    """One line of squeue. `elapsed` in seconds; `comment`: the plugin's `rule_<rule>_wildcards_<values>` (in an array the first job's)."""

    id: str
    state: str
    elapsed: int
    partition: str
    reason: str
    folder: str
    comment: str

    @property
    def running(self) -> bool:
        """Whether it has a node."""
        return self.state in RUNNING

    def may_run(self, rule: str) -> bool:
        """Whether it may be a job of `rule`, or a group of such jobs, which the plugin names after the group."""
        return self.comment == f"rule_{rule}" or self.comment.startswith(f"rule_{rule}_")


def queue(folder: Path, timeout: float = 5) -> list[QueuedJob] | None:
    """The user's jobs that were sent from `folder`, one per array task; None without squeue or without its answer in `timeout` s."""
    answer = ask("squeue", "--noheader", "--array", "--user", str(os.getuid()), "--format", FORMAT, timeout=timeout)
    if answer is None or not answer.good:
        return None
    jobs = [_job(line) for line in answer.text.splitlines() if line.count("|") >= FORMAT.count("|")]
    return [job for job in jobs if Path(job.folder) == folder.resolve()]


def seconds(elapsed: str) -> int:
    """SLURM's `[days-][hours:]minutes:seconds` in seconds; 0 for anything else (`INVALID`)."""
    days, _, rest = elapsed.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        total = 0
        for part in parts:
            total = total * 60 + part
        return total + 86400 * int(days or 0)
    except ValueError:
        return 0


def _job(line: str) -> QueuedJob:
    name, state, elapsed, partition, reason, folder, comment = line.split("|", 6)
    return QueuedJob(name, state, seconds(elapsed), partition, reason, folder, comment.strip())
