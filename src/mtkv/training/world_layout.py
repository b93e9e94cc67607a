"""World layout of one training, its processes and machines: what `resources.train` asks for, and what SLURM gave."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

FIRST_PORT, PORTS = 20000, 12000  # below those that Linux gives out itself (32768 and above)


@dataclass(frozen=True)
class WorldLayout:
    """`processes` in all, as many on each of the `nodes`. `stream`: their rows lie on disk, not in memory."""

    strategy: str = "single"
    nodes: int = 1
    processes: int = 1
    stream: bool = False

    @classmethod
    def of(cls, resources: Any) -> Self:
        """From the resources of a Snakemake job of the rule `train`; what is not in them is the default.

        Raises ValueError when they do not fit together.
        """
        strategy = str(resources.get("strategy") or cls.strategy)
        count, nodes = int(resources.get("workers") or 1), int(resources.get("nodes") or 1)
        spread = cls(strategy, nodes, count, stream=bool(int(resources.get("stream") or 0)))
        if spread.strategy == cls.strategy and spread.processes > 1:
            raise ValueError(
                f"{spread.processes} processes, but strategy {strategy} is one; see resources.train.strategy"
            )
        if spread.processes % spread.nodes:
            raise ValueError(f"{spread.processes} processes on {spread.nodes} nodes: not as many on each")
        return spread

    @property
    def on_each_node(self) -> int:
        """Processes of one machine."""
        return self.processes // self.nodes


@dataclass(frozen=True)
class Rendezvous:
    """Where the processes of one machine meet the others: the machine's number, and the first one's address and port."""

    node: int = 0
    address: str = "127.0.0.1"
    port: int = 0


def slurm_place(environment: Mapping[str, str]) -> Rendezvous:
    """This machine's place in a SLURM job of several nodes.

    The port follows from the job's number, so that all nodes know it and two jobs that share a node rarely meet. Raises ValueError outside
    such a job.
    """
    missing = [
        name
        for name in ("SLURM_JOB_ID", "SLURM_NODEID", "SLURM_JOB_NODELIST", "SLURM_NNODES")
        if name not in environment
    ]
    if missing:
        raise ValueError(
            f"a training on several nodes needs a SLURM job, but {', '.join(missing)} is not set;"
            " use the profile for SLURM, or resources.train.nodes: 1"
        )
    hosts = host_names(environment["SLURM_JOB_NODELIST"])
    if len(hosts) != int(environment["SLURM_NNODES"]):
        raise ValueError(f"SLURM_NNODES is {environment['SLURM_NNODES']}, but SLURM_JOB_NODELIST names {hosts}")
    return Rendezvous(int(environment["SLURM_NODEID"]), hosts[0], job_port(environment["SLURM_JOB_ID"]))


def job_port(job: str) -> int:
    """The port of a SLURM job: digits of its number, in a range that Linux leaves to programs."""
    return FIRST_PORT + int(re.sub(r"\D", "", job) or 0) % PORTS


def host_names(nodelist: str) -> list[str]:
    """`gpu[01-03,7],login-a` → gpu01, gpu02, gpu03, gpu7, login-a: what `scontrol show hostnames` prints.

    Raises ValueError for a list that cannot be read.
    """
    if nodelist.count("[") != nodelist.count("]"):
        raise ValueError(f"SLURM's list of nodes {nodelist!r} has brackets that do not match")
    names = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", nodelist):
        names += _expanded(part)
    return names


def _expanded(part: str) -> list[str]:
    head, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    inside, _, tail = rest.partition("]")
    return [head + number + end for number in _numbers(inside) for end in _expanded(tail)]


def _numbers(ranges: str) -> list[str]:
    found = []
    for each in ranges.split(","):
        first, dash, last = each.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"SLURM's list of nodes has {each!r} where a number or a range is expected")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return found


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
