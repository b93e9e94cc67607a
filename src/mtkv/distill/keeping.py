"""When and where one training keeps its state, and whom it tells how far it is."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from mtkv.provenance.checkpoints import Checkpoint
from mtkv.provenance.joblog import carry_on
from mtkv.provenance.preemption import Preemption


@dataclass
class Keeping:
    """`Keeping()` keeps nothing. With several processes each has its `preemption`, only the first the `checkpoint`.

    `seconds` of wall time between checkpoints, and optionally every so many `steps` too. `report_to` and `reports`: see
    `mtkv.distill.reporting`.
    """

    checkpoint: Checkpoint | None = None
    preemption: Preemption | None = None
    seconds: float = 600.0
    steps: int | None = None
    report_to: str = "none"
    reports: Path | None = None
    _last: float = field(default_factory=time.monotonic, repr=False)

    def resumed(self) -> Path | None:
        """The checkpoint to go on from, where there is one; noted as a resume."""
        newest = self.checkpoint.newest() if self.checkpoint else None
        if self.checkpoint and newest:
            self.checkpoint.note_resume(int(newest.name.removeprefix("step-")))
        return newest

    def due(self, step: int) -> bool:
        """Whether it is time for a checkpoint after this step."""
        if self.checkpoint is None:
            return False
        return time.monotonic() - self._last >= self.seconds or bool(self.steps and step % self.steps == 0)

    @classmethod
    @contextmanager
    def for_job(cls, job: Any) -> Iterator[Self]:
        """Of a Snakemake job (the `snakemake` object of a script) of the rule `train`; what is not in its `resources` is the default."""
        asked, log = job.resources, Path(job.log[0])
        with Checkpoint.for_job(job, "arms") as checkpoint, Preemption() as preemption:
            carry_on(log, checkpoint.folder / "job.log")
            yield cls(
                checkpoint,
                preemption,
                seconds=float(asked.get("checkpoint_seconds", cls.seconds)),
                report_to=str(asked.get("report_to", cls.report_to)),
                reports=log.with_suffix(""),
            )

    @property
    def asked(self) -> bool:
        """Whether this process was told to save and stop."""
        return self.preemption is not None and self.preemption.asked

    def kept(self) -> None:
        """Count the time to the next checkpoint from now."""
        self._last = time.monotonic()

    def report(self, step: int, steps: int, facts: dict[str, Any]) -> None:
        """Write the progress file, with what the GPU does where there is one."""
        if self.checkpoint is not None:
            self.checkpoint.progress(step, steps, "steps", **facts, **gpu_facts())

    def finish(self) -> list[int]:
        """The outputs are written: only the record of the last step stays. Returns the steps at which the training was resumed."""
        if self.checkpoint is None:
            return []
        resumed_at = self.checkpoint.resumed_at
        self.checkpoint.finish(keep=1)
        return resumed_at


def gpu_facts() -> dict[str, float]:
    """Peak memory of this process in MB and utilisation in percent (where the package nvidia-ml-py is); empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    facts = {"gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6, 1)}
    try:
        return facts | {"gpu_utilisation": float(torch.cuda.utilization())}
    except (ImportError, RuntimeError):
        return facts
