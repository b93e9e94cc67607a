"""Seconds and bytes of each job: measured by a past run of the same config, scaled from one of another, or computed by `work`.

Of a machine: makers' numbers for dense matrix products and for memory (`DEVICES`), and the share that a job really gets. Of all jobs
together: the longest chain of dependent jobs (`critical_path`), and all of them on a limited number of slots (`makespan`).
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from statistics import median
from typing import Any, Literal

from mtkv.ops.cost_model.past_runs import STARTUP, Sample, config_digest
from mtkv.ops.cost_model.work import WORK, Amounts, UnknownSizeError, Work, job_work, work_of
from mtkv.ops.planned_jobs import PlannedJob

UTILISATION = 0.35  # share of the maker's FLOP/s in training and reading; well-run training has 0.3 to 0.5


@dataclass(frozen=True)
class Device:
    """FLOP/s in 16 and 32 bit, bytes/s from memory, and seconds that a decoding step takes at least, however small the model."""

    flops_16: float
    flops_32: float
    bandwidth: float
    step_seconds: float = 0.025

    def flops(self, dtype: str) -> float:
        """FLOP/s for a torch dtype, by name."""
        return self.flops_32 if dtype == "float32" else self.flops_16


DEVICES: Mapping[str, Device] = {
    "v100": Device(125e12, 15.7e12, 0.9e12),
    "t4": Device(65e12, 8.1e12, 0.32e12),
    "a100": Device(312e12, 19.5e12, 2.0e12),
    "h100": Device(989e12, 67e12, 3.35e12),
    "h200": Device(989e12, 67e12, 4.8e12),
    "l40s": Device(362e12, 91.6e12, 0.86e12),
    "rtx4090": Device(165e12, 82.6e12, 1.0e12),
    "cpu": Device(30e9, 30e9, 10e9, 0.003),  # one core
}
DEFAULT_GPU = "a100"


def device_name(job: PlannedJob, gpu: str = DEFAULT_GPU) -> str:
    """The key in `DEVICES` to estimate a job with: the GPU model it asks for, if known; `gpu` for other GPU jobs; else "cpu"."""
    if not job.gpus:
        return "cpu"
    asked = str(job.resources.get("gpu_model") or job.resources.get("gres") or "").lower()
    return next((name for name in DEVICES if name in asked), gpu)


def devices_used(job: PlannedJob) -> int:
    """How many of its device a job uses: its GPUs, else its threads."""
    return max(1, job.gpus or job.threads)


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
        today = self._work(job, job.params, job.wildcards)
        samples = self._fitting(job)
        own = [sample for sample in samples if set(sample.outputs) & set(job.outputs)]
        found = self._alike(job, own) or self._alike(job, samples) or (today and self._scaled(job, samples, today))
        if found:
            return CostEstimate(*found[:2], today.transient if today else 0.0, found[2])
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

    def _scaled(self, job: PlannedJob, samples: Sequence[Sample], today: Work) -> tuple[float, float, Basis] | None:
        """The median of the nearest samples of other configs, each scaled by the ratio of modelled seconds, today's job to the sample."""
        scaled = []
        for sample in samples:
            before = self._work(job, sample.params or {}, sample.wildcards)
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

    def _work(self, job: PlannedJob, params: Mapping[str, Any], wildcards: Mapping[str, str]) -> Work | None:
        """The work of a job with these params; None for a model of unknown size, and for params of an older version."""
        try:
            return work_of(job.rule, params, self.amounts, job.outputs, str(wildcards.get("teacher", "")))
        except (UnknownSizeError, KeyError, TypeError, ValueError, ZeroDivisionError):
            return None

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
        return float(self.amounts.rows_of(training) * training["epochs"])


def _study(outputs: Sequence[str]) -> tuple[str, ...]:
    """The parts of results/<study> in the paths of a job's files."""
    return Path(outputs[0]).parts[:2] if outputs else ()


def _teachers(params: Any) -> int:
    kv = (params.get("arm") or {}).get("kv") if isinstance(params.get("arm"), dict) else None
    return len(kv["teachers"]) if kv else 0


def critical_path(jobs: Sequence[PlannedJob], seconds: Mapping[int, float]) -> tuple[float, list[PlannedJob]]:
    """Seconds of the longest chain of jobs that wait for each other, and the chain, first job first. `seconds` by job number.

    No number of machines makes the study shorter than this. `jobs` come in order, inputs first; a dependency that is not among them
    costs nothing.
    """
    ends: dict[int, float] = {}
    before: dict[int, PlannedJob | None] = {}
    known = {job.number: job for job in jobs}
    for job in jobs:
        waits = max((known[n] for n in job.above if n in known), key=lambda other: ends[other.number], default=None)
        before[job.number] = waits
        ends[job.number] = seconds[job.number] + (ends[waits.number] if waits else 0.0)
    last: PlannedJob | None = max(jobs, key=lambda job: ends[job.number], default=None)
    length, chain = ends[last.number] if last else 0.0, []
    while last is not None:
        chain.append(last)
        last = before[last.number]
    return length, chain[::-1]


def makespan(
    jobs: Sequence[PlannedJob],
    seconds: Mapping[int, float],
    demands: Mapping[int, Mapping[str, int]],
    capacity: Mapping[str, int],
) -> float:
    """Seconds for all jobs when each starts as soon as its inputs and the resources it demands are free, longest chains first.

    `demands` by job number, for instance {"slots": 1, "gpu": 1}; a resource not in `capacity` is unlimited; a demand above its capacity
    is taken as the capacity. This is list scheduling (Graham, 1969): at most twice the optimum, for one kind of slot.
    """
    known = {job.number: job for job in jobs}
    below: dict[int, list[int]] = {number: [] for number in known}
    waiting = {}
    for job in jobs:
        above = [number for number in job.above if number in known]
        waiting[job.number] = len(above)
        for number in above:
            below[number].append(job.number)
    tail: dict[int, float] = {}
    for job in reversed(jobs):
        tail[job.number] = seconds[job.number] + max((tail[n] for n in below[job.number]), default=0.0)
    free = dict(capacity)
    ready = sorted((number for number, count in waiting.items() if count == 0), key=lambda number: -tail[number])
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        for number in list(ready):
            need = {name: min(amount, capacity[name]) for name, amount in demands[number].items() if name in capacity}
            if all(free[name] >= amount for name, amount in need.items()):
                ready.remove(number)
                for name, amount in need.items():
                    free[name] -= amount
                heapq.heappush(running, (now + seconds[number], number))
        now, done = heapq.heappop(running)
        for name, amount in demands[done].items():
            if name in capacity:
                free[name] += min(amount, capacity[name])
        for number in below[done]:
            waiting[number] -= 1
            if waiting[number] == 0:
                ready.append(number)
        ready.sort(key=lambda number: -tail[number])
    return now
