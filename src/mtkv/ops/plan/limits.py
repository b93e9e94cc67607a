"""What a plan would run into: a full disk, time limits, partitions that take no such job. One sentence each, the worst first."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from mtkv.ops.cost_model.estimate import CostEstimate
from mtkv.ops.cost_model.past_runs import size_on_disk
from mtkv.ops.planned_jobs import PlannedJob
from mtkv.ops.slurm.partitions import ClusterPartition

MARGIN = 0.8  # share of a time limit above which an estimate is reported


def amount(size: float) -> str:
    """Bytes as people read them, in powers of ten."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if abs(size) >= 10**power:
            return f"{size / 10**power:.1f} {unit}"
    return f"{size:.0f} B"


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
    needs: dict[int, tuple[Path, float, float]] = {}
    for job in jobs:
        if job.outputs:
            place = _existing(folder / job.outputs[0])
            device = os.stat(place).st_dev
            _, stays, _ = needs.get(device, (place, 0.0, 0.0))
            needs[device] = (place, stays + net_bytes(job, estimates[job.number], folder), 0.0)
    place = _existing(folder / "checkpoints")
    device = os.stat(place).st_dev
    at_once = sum(sorted((estimates[job.number].transient for job in jobs), reverse=True)[:slots])
    place, stays, _ = needs.get(device, (place, 0.0, 0.0))
    needs[device] = (place, stays, at_once)
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
            told[f"{job.rule}: no partition takes it ({detail}); lower resources.{STAGE.get(job.rule, job.rule)}"] = (
                None
            )
    return list(told)


# Rules whose resources have another name in the config.
STAGE = {"teacher_kv": "teachers", "map": "maps", "targets": "maps"}


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
