"""A plan: the jobs that will run with their estimates, by stage and in total, and what they would run into.

Problems are a full disk, time limits, partitions that take no such job: one sentence each, the worst first.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkv.ops.cost_model.estimate import (
    BASES,
    DEFAULT_GPU,
    DEVICES,
    UTILISATION,
    Basis,
    CostEstimate,
    Estimator,
    critical_path,
    device_name,
    makespan,
)
from mtkv.ops.cost_model.past_runs import amount, card_files, cards_of, existing, samples_of, size_on_disk
from mtkv.ops.cost_model.work import STUDENT, Amounts, amounts_of
from mtkv.ops.plan.explain import copied
from mtkv.ops.planned_jobs import KINDS, PlannedJob
from mtkv.ops.slurm.partitions import ClusterPartition, partitions_in_file, partitions_of_cluster
from mtkv.ops.snakemake_dag import DryRun, Profile, dry_run

if TYPE_CHECKING:
    from mtkv.config.study import Study


MARGIN = 0.8  # share of a time limit above which an estimate is reported


def net_bytes(job: PlannedJob, estimate: CostEstimate, folder: Path) -> float:
    """Bytes that a job adds: what it writes, less the present outputs that this replaces."""
    return estimate.written - sum(size_on_disk(folder / path) for path in job.outputs)


def disk_problems(
    jobs: Sequence[PlannedJob],
    estimates: Mapping[int, CostEstimate],
    slots: int,
    folder: Path,
    free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
) -> list[str]:
    """A sentence for each disk with too little room for the outputs and the largest checkpoints of `slots` jobs at once.

    Results and checkpoints are counted together where they are on one disk.
    """
    at_once = sum(sorted((estimates[job.number].transient for job in jobs), reverse=True)[:slots])
    needs: dict[int, tuple[Path, float, float]] = {}
    added = [(job.outputs[0], net_bytes(job, estimates[job.number], folder), 0.0) for job in jobs if job.outputs]
    for path, stays, passes in [*added, ("checkpoints", 0.0, at_once)]:
        place = existing(folder / path)
        device = os.stat(place).st_dev
        first, before, _ = needs.get(device, (place, 0.0, 0.0))
        needs[device] = (first, before + stays, passes)
    return [
        f"disk of {place}: {amount(stays + passing)} are needed ({amount(stays)} of results, {amount(passing)} of checkpoints "
        f"while {slots} jobs train), {amount(room)} are free; free some, or put results/ and checkpoints/ on a larger disk"
        for place, stays, passing in needs.values()
        if stays + passing > (room := free(place))
    ]


def time_problems(jobs: Iterable[PlannedJob], estimates: Mapping[int, CostEstimate]) -> list[str]:
    """A sentence for each rule with a job that would take longer than its `runtime`, or nearly so."""
    worst: dict[str, tuple[float, float, PlannedJob]] = {}
    for job in jobs:
        limit = float(job.resources.get("runtime") or 0)
        needed = estimates[job.number].seconds / 60
        if limit and needed > MARGIN * limit and needed / limit > worst.get(job.rule, (0.0,))[0]:
            worst[job.rule] = (needed / limit, limit, job)
    return [
        f"{job.label}: {estimates[job.number].basis} at {share * limit:.0f} minutes, the time limit is {limit:.0f}; "
        f"raise resources.{STAGE.get(rule, rule)}.runtime"
        for rule, (share, limit, job) in worst.items()
    ]


def partition_problems(jobs: Iterable[PlannedJob], partitions: Sequence[ClusterPartition]) -> list[str]:
    """A sentence for each kind of job that the partition it names, or else every partition, would refuse."""
    told: dict[str, None] = {}
    known = {partition.name: partition for partition in partitions}
    for job in jobs:
        if job.local or not partitions:
            continue
        asked = str(job.resources.get("slurm_partition") or "")
        if asked and asked not in known:
            told[f"{job.rule}: partition {asked!r} is not one of {', '.join(known)}; mend slurm_partition"] = None
            continue
        open_to = [known[asked]] if asked else [each for each in partitions if each.default] or list(partitions)
        refusals = {partition.name: partition.refuses(job) for partition in open_to}
        if all(refusals.values()):
            detail = "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in refusals.items())
            stage = STAGE.get(job.rule, job.rule)
            told[f"{job.rule}: no partition takes it ({detail}); lower resources.{stage}"] = None
    return list(told)


# Rules whose resources have another name in the config.
STAGE = {"teacher_kv": "teachers", "map": "maps", "targets": "maps"}


@dataclass(frozen=True)
class StageRow:
    """One rule: how many of its jobs run and why (kind: count), seconds, GPU-hours, bytes added, and the basis of the numbers."""

    rule: str
    running: int
    jobs: int
    kinds: dict[str, int]
    seconds: float
    longest: float
    gpu_hours: float
    written: float
    basis: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """`jobs`: all jobs of the study; `estimates`: by number, of those that run; `critical`: the longest chain. In seconds and bytes."""

    jobs: list[PlannedJob]
    estimates: dict[int, CostEstimate]
    stages: list[StageRow]
    problems: list[str]
    notes: list[str]
    critical_seconds: float
    critical: list[PlannedJob]
    total_seconds: float
    slots: int
    copied: str = ""  # advice of `explain.copied`, where only file times differ

    @property
    def running(self) -> list[PlannedJob]:
        """The jobs that will run, inputs first."""
        return [job for job in self.jobs if job.runs]

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of all stages."""
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def written(self) -> float:
        """Bytes that the plan adds for good."""
        return sum(stage.written for stage in self.stages)


def make_plan(
    study: "Study",
    configfiles: Sequence[Path] = (),
    targets: Sequence[str] = (),
    profile: Profile | None = None,
    folder: Path = Path(),
    gpu: str = DEFAULT_GPU,
    utilisation: float = UTILISATION,
) -> Plan:
    """The plan of a study in `folder`; nothing is written. Raises PlanError for what Snakemake refuses."""
    profile = profile or Profile()
    found = dry_run(targets, configfiles, profile, folder, cards=_cards(folder))
    running = [job for job in found.jobs if job.runs]
    estimator = _estimator(study, found, folder, gpu, utilisation)
    estimates = {job.number: estimator.estimate(job) for job in running}
    seconds = {number: estimate.seconds for number, estimate in estimates.items()}
    length, chain = critical_path(running, seconds)
    slots = max(1, min(profile.slots, sum(job.threads for job in running)))
    demands = {job.number: _demand(job, profile) for job in running}
    return Plan(
        jobs=found.jobs,
        estimates=estimates,
        stages=_stages(found.jobs, estimates, folder),
        problems=[
            *disk_problems(running, estimates, slots, folder),
            *time_problems(running, estimates),
            *partition_problems(running, _partitions(profile)),
        ],
        notes=_notes(running, estimates, estimator),
        critical_seconds=length,
        critical=chain,
        total_seconds=makespan(running, seconds, demands, {"slots": slots} | profile.limits),
        slots=slots,
        copied=copied(found.jobs, folder, targets, configfiles),
    )


def _cards(folder: Path) -> list[str]:
    return [str(Path(path).relative_to(folder)) for path in card_files(folder / "results")]


def _estimator(study: "Study", found: DryRun, folder: Path, gpu: str, utilisation: float) -> Estimator:
    data_stays = not any(job.rule == "data" and job.runs for job in found.jobs)
    amounts: Amounts = amounts_of(study, cards_of(found.jobs, folder), folder / "results" / study.study, data_stays)
    return Estimator(amounts, list(samples_of(found.jobs, found.elsewhere, folder)), gpu, utilisation)


def _demand(job: PlannedJob, profile: Profile) -> dict[str, int]:
    shared = {name: int(amount) for name in profile.limits if isinstance(amount := job.resources.get(name), int)}
    return {"slots": 1 if profile.remote else job.threads} | shared


def _partitions(profile: Profile) -> list[ClusterPartition]:
    if not profile.remote:
        return []
    told = partitions_in_file(profile.partitions) if profile.partitions else []
    return told or partitions_of_cluster()


def _stages(jobs: Sequence[PlannedJob], estimates: dict[int, CostEstimate], folder: Path) -> list[StageRow]:
    rows = []
    for rule in dict.fromkeys(job.rule for job in jobs):
        own = [job for job in jobs if job.rule == rule]
        running = [job for job in own if job.runs]
        found = [estimates[job.number] for job in running]
        kinds = Counter(job.kind for job in running)
        bases: Counter[Basis] = Counter(estimate.basis for estimate in found)
        rows.append(
            StageRow(
                rule=rule,
                running=len(running),
                jobs=len(own),
                kinds={kind: kinds[kind] for kind in KINDS if kinds[kind]},
                seconds=sum(estimate.seconds for estimate in found),
                longest=max((estimate.seconds for estimate in found), default=0.0),
                gpu_hours=sum(estimates[job.number].seconds * job.gpus for job in running) / 3600,
                written=sum(net_bytes(job, estimates[job.number], folder) for job in running),
                basis={basis: bases[basis] for basis in BASES if bases[basis]},
            )
        )
    return rows


def _notes(running: Sequence[PlannedJob], estimates: dict[int, CostEstimate], estimator: Estimator) -> list[str]:
    """What the numbers rest on: which of them are not measured, and what was assumed instead."""
    told = dict.fromkeys(estimate.note for estimate in estimates.values() if estimate.note)
    notes = [f"not counted: {note}" for note in told]
    by_model = [job for job in running if estimates[job.number].basis == "estimated"]
    for name in dict.fromkeys(device_name(job, estimator.gpu) for job in by_model):
        device: Any = DEVICES[name]
        notes.append(
            f"estimated: {name} at {estimator.utilisation:.0%} of {device.flops_16 / 1e12:g} TFLOP/s in 16 bit or "
            f"{device.flops_32 / 1e12:g} in 32 bit{' per core' if name == 'cpu' else ''}; 6·N FLOPs per token trained, 2·N per token read"
        )
    amounts = estimator.amounts
    if by_model and STUDENT not in amounts.measured:
        notes.append(f"estimated: {amounts.tokens(STUDENT):.0f} tokens per row, which no card of this study says")
    return notes
