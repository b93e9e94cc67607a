"""Seconds and bytes of each job: measured by a past run of the same config, scaled from one of another, or computed by `work`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from statistics import median
from typing import Any, Literal

from mtkv.ops.cost_model.amounts import Amounts
from mtkv.ops.cost_model.devices import DEFAULT_GPU, DEVICES, UTILISATION, Device, device_name, devices_used
from mtkv.ops.cost_model.past_runs import STARTUP, Sample, config_digest
from mtkv.ops.cost_model.work import WORK, UnknownSizeError, Work, job_work, work_of
from mtkv.ops.planned_jobs import PlannedJob

Basis = Literal["measured", "scaled", "estimated", "assumed", "unknown"]
BASES: tuple[Basis, ...] = ("measured", "scaled", "estimated", "assumed", "unknown")
# Light jobs without a formula, where none has run yet: seconds, and bytes they write.
ASSUMED: dict[str, tuple[float, float]] = {
    "data": (60, 50e6),
    "teacher_index": (15, 1e6),
    "probe": (5, 1e5),
    "score": (5, 1e5),
    "compare": (30, 5e6),
    "report": (15, 10e6),
}
NEAREST = 3
SAME_ROWS = 0.02


@dataclass(frozen=True)
class CostEstimate:
    """What one job costs. `written`: bytes that stay; `transient`: bytes of checkpoints while it runs; `note`: what is not known."""

    seconds: float
    written: float
    transient: float
    basis: Basis
    note: str = ""


@dataclass(frozen=True)
class Estimator:
    """Estimates jobs from samples of past runs; `gpu` and `utilisation` are assumed where nothing was measured."""

    amounts: Amounts
    samples: Sequence[Sample] = field(default=())
    gpu: str = DEFAULT_GPU
    utilisation: float = UTILISATION

    def estimate(self, job: PlannedJob) -> CostEstimate:
        """Seconds and bytes of a job; basis "unknown", and zeros, when it needs a model of unknown size."""
        transient = self._transient(job)
        samples = self._fitting(job)
        for find in (self._own, self._same_config, self._scaled):
            found = find(job, samples)
            if found is not None:
                return CostEstimate(*found[:2], transient, found[2])
        if job.rule in ASSUMED:
            return CostEstimate(*ASSUMED[job.rule], 0.0, "assumed")
        try:
            work = job_work(job, self.amounts)
        except UnknownSizeError as error:
            return CostEstimate(0.0, 0.0, 0.0, "unknown", f"the size of model {error} is not known until it is fetched")
        return CostEstimate(STARTUP + self.model_seconds(job, work), work.written, work.transient, "estimated")

    def model_seconds(self, job: PlannedJob, work: Work) -> float:
        """Seconds that the stage itself takes on the job's devices, by its FLOPs and bytes."""
        device: Device = DEVICES[device_name(job, self.gpu)]
        count = devices_used(job)
        step = max(work.step_bytes / device.bandwidth / count, device.step_seconds)
        return work.flops / (device.flops(work.dtype) * self.utilisation * count) + work.steps * step

    def _fitting(self, job: PlannedJob) -> list[Sample]:
        """Samples of the job's rule, on a GPU if it is (lacking CPU samples a CPU job takes those); light rules: only its own study's."""
        found = [sample for sample in self.samples if sample.rule == job.rule and not sample.reused]
        if job.rule not in WORK:
            found = [sample for sample in found if _study(sample.outputs) == _study(job.outputs)]
        alike = [sample for sample in found if bool(sample.gpu) == (job.gpus > 0)]
        return alike or ([] if job.gpus else found)

    def _own(self, job: PlannedJob, samples: Sequence[Sample]) -> tuple[float, float, Basis] | None:
        return self._alike(job, [sample for sample in samples if set(sample.outputs) & set(job.outputs)])

    def _same_config(self, job: PlannedJob, samples: Sequence[Sample]) -> tuple[float, float, Basis] | None:
        return self._alike(job, samples)

    def _alike(self, job: PlannedJob, samples: Sequence[Sample]) -> tuple[float, float, Basis] | None:
        """The median of the samples with the job's config digest, scaled by the rows it reads today."""
        digest = config_digest(job.params)
        found = [sample for sample in samples if sample.digest == digest]
        if not found:
            return None
        ratio = median(self._row_ratio(job, sample) for sample in found)
        basis: Basis = "measured" if abs(ratio - 1) <= SAME_ROWS else "scaled"
        scale = 1.0 if basis == "measured" else ratio
        return median(s.seconds for s in found) * scale, median(s.size for s in found) * scale, basis

    def _scaled(self, job: PlannedJob, samples: Sequence[Sample]) -> tuple[float, float, Basis] | None:
        """The median of the nearest samples of other configs, each scaled by the ratio of modelled seconds, today's job to the sample."""
        today = self._attempt(lambda: job_work(job, self.amounts))
        if today is None:
            return None
        scaled = []
        for sample in samples:
            before = self._attempt(lambda sample=sample: self._work_then(job, sample))  # type: ignore[misc]
            if before is None:
                continue
            now, then = self.model_seconds(job, today), self.model_seconds(job, before)
            ratio = now / then if then else 1.0
            size = sample.size * (today.written / before.written if before.written else 1.0)
            seconds = min(STARTUP, sample.seconds) + max(sample.seconds - STARTUP, 0.0) * ratio
            scaled.append((self._distance(job, sample, ratio), seconds, size))
        nearest = sorted(scaled, key=lambda entry: entry[0])[:NEAREST]
        if not nearest:
            return None
        return median(entry[1] for entry in nearest), median(entry[2] for entry in nearest), "scaled"

    def _work_then(self, job: PlannedJob, sample: Sample) -> Work:
        return work_of(
            job.rule, sample.params or {}, self.amounts, job.outputs, str(sample.wildcards.get("teacher", ""))
        )

    def _distance(self, job: PlannedJob, sample: Sample, ratio: float) -> float:
        """How unlike the job a sample is: another number of teachers counts most, then another amount of work."""
        return 10.0 * abs(_teachers(job.params) - _teachers(sample.params or {})) + abs(log(ratio or 1.0))

    def _row_ratio(self, job: PlannedJob, sample: Sample) -> float:
        rows = self._rows(job)
        return rows / sample.rows if rows and sample.rows else 1.0

    def _rows(self, job: PlannedJob) -> float | None:
        if job.rule == "teacher_kv":
            return self.amounts.read / int(job.params["shards"])
        training = (job.params.get("arm") or {}).get("training") if job.rule == "train" else None
        if training is None:
            return None
        if training["steps"]:
            return float(training["steps"] * training["batch_size"] * training["gradient_accumulation"])
        return float(self.amounts.train * training["epochs"])

    def _transient(self, job: PlannedJob) -> float:
        work = self._attempt(lambda: job_work(job, self.amounts))
        return work.transient if work else 0.0

    def _attempt(self, find: Callable[[], Work]) -> Work | None:
        try:
            return find()
        except (UnknownSizeError, KeyError, TypeError, ValueError, ZeroDivisionError):  # params of an older version
            return None


def _study(outputs: Sequence[str]) -> tuple[str, ...]:
    """The parts of results/<study> in the paths of a job's files."""
    return Path(outputs[0]).parts[:2] if outputs else ()


def _teachers(params: Any) -> int:
    kv = (params.get("arm") or {}).get("kv") if isinstance(params.get("arm"), dict) else None
    return len(kv["teachers"]) if kv else 0
