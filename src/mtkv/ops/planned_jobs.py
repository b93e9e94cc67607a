"""What a plan knows of one job, as plain values without Snakemake's objects."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["new", "missing", "incomplete", "config", "code", "input"]
KINDS: tuple[Kind, ...] = ("new", "missing", "incomplete", "config", "code", "input")


@dataclass(frozen=True)
class Change:
    """One changed value: a field of the params ("arm.kv.loss.beta"), or a file; None stands for absent."""

    path: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Cause:
    """One reason why a job runs.

    new: never made. missing: was made and is gone. incomplete: its job was killed. config: params changed. code: the stage's code or the
    script changed. input: an input changed; `derived` when only because another job of this plan makes it anew.
    """

    kind: Kind
    files: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    derived: bool = False


@dataclass(frozen=True)
class Record:
    """What Snakemake recorded of the run that made a job's outputs: its rule, its seconds, and the params as texts (repr)."""

    rule: str
    seconds: float
    params: tuple[str, ...]


@dataclass(frozen=True)
class PlannedJob:
    """One job of the study. `above`: numbers of the jobs whose outputs it reads; `runs`: whether it is to run now, for these `causes`."""

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
        """The first of the job's causes in the order of `KINDS`; None when it does not run."""
        return min((cause.kind for cause in self.causes), key=KINDS.index) if self.causes else None

    @property
    def card(self) -> str | None:
        """The job's card file, if it writes one."""
        return next((path for path in self.outputs if path.endswith("card.json")), None)

    @property
    def gpus(self) -> int:
        """GPUs the job holds on all its nodes together: `gpu`, or `gres` times nodes."""
        return int(self.resources.get("gpu") or 0) or gres_gpus(str(self.resources.get("gres") or "")) * self.nodes

    @property
    def nodes(self) -> int:
        """Machines the job runs on."""
        return int(self.resources.get("nodes") or 1)


def gres_gpus(gres: str) -> int:
    """GPUs that a SLURM gres text asks for: 2 for `gpu:2` and for `gpu:a100:2`."""
    wanted = [part.split(":") for part in gres.split(",") if part.split(":")[0] == "gpu"]
    return sum(int(part[-1]) if part[-1].isdigit() else 1 for part in wanted)
