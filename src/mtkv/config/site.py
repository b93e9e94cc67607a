"""The file `profiles/slurm/site.yaml`: what a cluster calls its partitions, GPUs and accounts, and what they allow.

It says how jobs are asked for, never what they compute, so it is no part of a study.
"""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from mtkv.config.base import Name, Section
from mtkv.config.errors import ConfigError, Problem
from mtkv.config.overlay import read_yaml
from mtkv.config.pydantic_errors import problems_of


class SitePartition(Section):
    """What a partition allows one job, under the keys of the SLURM plugin's `--slurm-partition-config`."""

    max_runtime: int | None = Field(default=None, ge=1, description="Longest time limit in minutes.")
    max_mem_mb: int | None = Field(default=None, ge=1, description="Memory of a node in MB.")
    max_threads: int | None = Field(default=None, ge=1, description="CPU cores of a node.")
    max_nodes: int | None = Field(default=None, ge=1, description="Most nodes of one job.")
    max_gpu: int = Field(default=0, ge=0, description="Most GPUs of one job; 0 for a partition without GPUs.")
    available_gpu_models: list[str] | None = Field(default=None, description="GPU types of the partition.")
    available_constraints: list[str] | None = Field(default=None, description="Node features of the partition.")
    cluster: str | None = Field(default=None, description="Name of the cluster where sbatch reaches several.")


class Site(Section):
    """One cluster."""

    account: str | None = Field(default=None, description="Account that pays (sbatch -A); null: the user's default.")
    qos: str | None = Field(default=None, description="Quality of service (sbatch --qos).")
    constraint: str | None = Field(default=None, description="Node features (sbatch -C), for jobs with GPUs.")
    gpu_model: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_.]+$", description="GPU type, as in gpu:<type>; null: whichever is free."
    )
    gpu_request: Literal["gpus", "gres"] = Field(
        default="gpus",
        description="gpus: sbatch --gpus=<type>:<n>; gres: --gres=gpu:<type>:<n>, for sites without --gpus.",
    )
    signal_seconds: int = Field(
        default=120,
        ge=0,
        description="How long before its time limit a job is told to save (USR1); 0: not at all.",
    )
    sbatch: str = Field(default="", description="Further options for sbatch, as written on its command line.")
    partitions: dict[Name, SitePartition] = Field(
        default={}, description="Partitions by name; a job goes to the one it fits best. None: the cluster's default."
    )

    def most(self, what: Literal["max_mem_mb", "max_runtime"], gpus: int) -> float:
        """The largest `what` (MB or minutes) that a job with `gpus` GPUs may ask for; infinite where no partition sets a limit."""
        fitting = [getattr(part, what) or math.inf for part in self.partitions.values() if part.max_gpu >= gpus]
        return max(fitting, default=math.inf)

    def gpu_flags(self, gpus: int, nodes: int = 1) -> dict[str, int | str]:
        """Snakemake resources that ask for `gpus` in all, spread over `nodes`.

        On several nodes the job is what the SLURM plugin calls an MPI job: the stage itself starts srun on all of them. There is no
        `--ntasks-per-gpu` (tasks_per_gpu: -1).
        """
        kind = f":{self.gpu_model}" if self.gpu_model else ""
        several: dict[str, int | str] = {"nodes": nodes, "tasks": nodes, "tasks_per_gpu": -1, "mpi": "srun"}
        spread = several if nodes > 1 else {}
        if not gpus:
            return {"gpu": 0} | spread
        if self.gpu_request == "gres":  # counted per node
            return {"gres": f"gpu{kind}:{math.ceil(gpus / nodes)}"} | spread
        model: dict[str, int | str] = {"gpu_model": self.gpu_model} if self.gpu_model else {}
        return {"gpu": gpus} | model | spread

    def flags(self, gpus: int, saves: bool) -> dict[str, str]:
        """Snakemake resources that hold sbatch options: account, qos, constraint, and with `saves` USR1 before the time limit."""
        signal = [f"--signal=USR1@{self.signal_seconds}"] if saves and self.signal_seconds else []
        flags = {
            "slurm_account": self.account,
            "qos": self.qos,
            "constraint": self.constraint if gpus else None,
            "slurm_extra": " ".join([*signal, *self.sbatch.split()]),
        }
        return {name: value for name, value in flags.items() if value}


def read_site(path: str | Path) -> Site:
    """The site that a YAML file describes; without the file, one of default settings. Raises ConfigError."""
    if not Path(path).exists():
        return Site()
    try:
        return Site.model_validate(read_yaml(path))
    except ValidationError as error:
        found = problems_of(error, Site)
        raise ConfigError([Problem((str(path), *problem.loc), problem.message) for problem in found]) from None
