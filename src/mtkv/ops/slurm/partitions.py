"""The partitions of a SLURM cluster and their limits, from the SLURM plugin's partition file or from the cluster itself."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import Any

import yaml

from mtkv.ops.planned_jobs import PlannedJob

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<fields>\d+(?::\d+){0,2})")
UNITS = {"s": 1 / 60, "m": 1.0, "h": 60.0, "d": 1440.0, "w": 10080.0}


@dataclass(frozen=True)
class ClusterPartition:
    """Limits of one partition for one job: minutes, MB and cores per node, GPUs in all and per node, nodes.

    `gpu_models`: empty for any. `default`: takes the jobs that name no partition.
    """

    name: str
    runtime: float = inf
    mem_mb: float = inf
    threads: float = inf
    gpus: float = inf
    gpus_per_node: float = inf
    nodes: float = inf
    gpu_models: tuple[str, ...] = ()
    default: bool = False

    def refuses(self, job: PlannedJob) -> list[str]:
        """Reasons why the partition would not take a job; empty when it does."""
        asked = {
            "runtime": (_number(job.resources.get("runtime")), self.runtime, "minutes"),
            "mem_mb": (_number(job.resources.get("mem_mb")), self.mem_mb, "MB"),
            "threads": (job.threads, self.threads, "cores"),
            "gpu": (job.gpus, self.gpus, "GPUs"),
            "gpu per node": (ceil(job.gpus / job.nodes), self.gpus_per_node, "GPUs"),
            "nodes": (job.nodes, self.nodes, "nodes"),
        }
        told = [
            f"{name} {amount:g} > {limit:g} {unit}" for name, (amount, limit, unit) in asked.items() if amount > limit
        ]
        model = job.resources.get("gpu_model")
        if model and self.gpu_models and model not in self.gpu_models:
            told.append(f"gpu_model {model} is not one of {', '.join(self.gpu_models)}")
        return told


def partitions_in_file(path: Path) -> list[ClusterPartition]:
    """The partitions in a file for `--slurm-partition-config`. Raises ValueError for any other file."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    entries = tree.get("partitions") if isinstance(tree, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: no mapping `partitions` of partitions by name")
    return [_of_file(str(name), limits or {}) for name, limits in entries.items()]


def partitions_of_cluster() -> list[ClusterPartition]:
    """The partitions in `scontrol show partition`; none without SLURM, or when it does not answer in 5 seconds."""
    if shutil.which("scontrol") is None:
        return []
    try:
        command = ["scontrol", "--oneliner", "show", "partition"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_partitions(done.stdout)


def parse_partitions(text: str) -> list[ClusterPartition]:
    """Parse the output of `scontrol --oneliner show partition`."""
    found = []
    for line in text.splitlines():
        facts = dict(part.split("=", 1) for part in line.split() if "=" in part)
        if "PartitionName" not in facts:
            continue
        nodes = _number(facts.get("TotalNodes"), 0) or 1
        gpus = sum(int(count) for count in re.findall(r"gres/gpu=(\d+)", facts.get("TRES", "")))
        memory = _number(facts.get("MaxMemPerNode"))
        found.append(
            ClusterPartition(
                name=facts["PartitionName"],
                runtime=minutes(facts.get("MaxTime", "UNLIMITED")),
                mem_mb=memory or inf,
                threads=_number(facts.get("TotalCPUs"), 0) / nodes or inf,
                gpus=gpus if "TRES" in facts else inf,
                gpus_per_node=ceil(gpus / nodes) if "TRES" in facts else inf,
                nodes=_number(facts.get("MaxNodes"), 0) or nodes,
                default=facts.get("Default") == "YES",
            )
        )
    return found


def minutes(time: Any) -> float:
    """Minutes in a time of SLURM (30, 2:00, 2:00:00, 1-12:00:00, UNLIMITED) or of Snakemake (2h). Raises ValueError."""
    text = str(time).strip()
    if text.upper() in ("UNLIMITED", "INFINITE", "NONE"):
        return inf
    if text[-1:] in UNITS and text[:-1].replace(".", "", 1).isdigit():
        return float(text[:-1]) * UNITS[text[-1]]
    match = TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time; allowed: minutes, hours:minutes:seconds, days-hours, 2h, UNLIMITED")
    fields = [int(part) for part in match["fields"].split(":")]
    if match["days"]:
        hours, mins, seconds = [*fields, 0, 0][:3]
        return int(match["days"]) * 1440 + hours * 60 + mins + seconds / 60
    if len(fields) == 1:
        return float(fields[0])
    hours, mins, seconds = [*fields, 0][:3]  # two fields: hours and minutes, as the SLURM plugin takes them in its file
    return hours * 60 + mins + seconds / 60


def _of_file(name: str, limits: dict[str, Any]) -> ClusterPartition:
    return ClusterPartition(
        name=name,
        runtime=minutes(limits.get("max_runtime", "UNLIMITED")),
        mem_mb=_number(limits.get("max_mem_mb"), inf),
        threads=min(_number(limits.get("max_threads"), inf), _number(limits.get("max_cpus_per_task"), inf)),
        gpus=_number(limits.get("max_gpu"), 0),
        nodes=_number(limits.get("max_nodes"), inf),
        gpu_models=tuple(limits.get("available_gpu_models") or ()),
    )


def _number(value: Any, default: float = 0.0) -> float:
    try:
        return default if value is None else float(value)
    except (TypeError, ValueError):
        return default
