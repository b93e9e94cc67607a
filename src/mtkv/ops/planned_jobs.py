"""What the plan knows of one job: plain values, without Snakemake's objects."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["new", "missing", "incomplete", "config", "code", "input"]
KINDS: tuple[Kind, ...] = ("new", "missing", "incomplete", "config", "code", "input")


@dataclass(frozen=True)
class Change:
    """One value that changed: a field of the params ("arm.kv.loss.beta"), or a file; None stands for absent."""

    path: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Cause:
    """One reason for which a job runs.

    new: never made. missing: was made and is gone. incomplete: its job was killed. config: params changed. code: the stage's code or the
    script changed. input: an input changed; `derived` when it is because another job of this plan makes it anew.
    """

    kind: Kind
    files: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    derived: bool = False


@dataclass(frozen=True)
class Record:
    """What Snakemake remembers of the run that made a job's outputs: seconds from start to end, and the params' texts (repr)."""

    rule: str
    seconds: float
    params: tuple[str, ...]


@dataclass(frozen=True)
class PlannedJob:
    """One job of the study. `above`: numbers of the jobs whose outputs it reads. `runs`: whether it will run now."""

    number: int
    rule: str
    wildcards: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: Mapping[str, Any]
    threads: int
    resources: Mapping[str, Any]
    local: bool
    above: tuple[int, ...]
    runs: bool
    causes: tuple[Cause, ...] = ()
    record: Record | None = field(default=None, compare=False)

    @property
    def label(self) -> str:
        """The rule with its wildcards, as in `train fixed 42`."""
        return " ".join([self.rule, *self.wildcards.values()])

    @property
    def kind(self) -> Kind | None:
        """The weightiest of the job's causes, in the order of KINDS; None when it does not run."""
        return min((cause.kind for cause in self.causes), key=KINDS.index) if self.causes else None

    @property
    def card(self) -> str | None:
        """The job's card file, if it writes one."""
        return next((path for path in self.outputs if path.endswith("card.json")), None)

    @property
    def gpus(self) -> int:
        """GPUs the job holds on all its nodes together: `gpu`, or what `gres` gives on each."""
        return int(self.resources.get("gpu") or 0) or gres_gpus(str(self.resources.get("gres") or "")) * self.nodes

    @property
    def nodes(self) -> int:
        """Machines the job runs on."""
        return int(self.resources.get("nodes") or 1)


def gres_gpus(gres: str) -> int:
    """GPUs that a SLURM gres text asks for: gpu:2, gpu:a100:2."""
    wanted = [part.split(":") for part in gres.split(",") if part.split(":")[0] == "gpu"]
    return sum(int(part[-1]) if part[-1].isdigit() else 1 for part in wanted)
