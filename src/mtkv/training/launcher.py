"""Start the processes of one training, and end with what they end with.

One process: the training runs in this one. Several on this machine: each is `python -m mtkv.stages.train_worker request.json`, with the
variables that torch and accelerate look for. Several machines: srun starts this module once on each.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtkv.checkpointing.preemption import SAVED
from mtkv.provenance.files import read_json
from mtkv.training.world_layout import Rendezvous, WorldLayout, free_port, slurm_place

FORWARDED = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
PATIENCE = 300.0  # seconds for the others to save, once one has; a process that fails takes the others with it at once
WORKER, NODE = "mtkv.stages.train_worker", "mtkv.training.launcher"


def launch(request: Path, layout: WorldLayout) -> int:
    """Run the training; returns the code of the first process that failed, else 75 when they saved and stopped, else 0."""
    if layout.nodes > 1:
        return wait([subprocess.Popen(srun_command(request, layout))])
    return run_node(request, layout, Rendezvous(port=free_port()))


def srun_command(request: Path, layout: WorldLayout) -> list[str]:
    """What starts this module once on every node of the SLURM job; a node that fails ends the others."""
    step = ["srun", f"--nodes={layout.nodes}", f"--ntasks={layout.nodes}", "--ntasks-per-node=1", "--cpu-bind=none"]
    return [*step, "--kill-on-bad-exit=0", sys.executable, "-m", NODE, str(request)]


def run_node(request: Path, layout: WorldLayout, place: Rendezvous) -> int:
    """Start this machine's processes and wait for them."""
    command = [sys.executable, "-m", WORKER, str(request)]
    environments = [worker_environment(layout, place, local, os.environ) for local in range(layout.on_each_node)]
    return wait([start(command, environment) for environment in environments])


def start(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """One process of the training."""
    return subprocess.Popen(command, env=environment)


def worker_environment(
    layout: WorldLayout, place: Rendezvous, local: int, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The variables of torch.distributed for process number `local` of a machine; one CPU thread unless said otherwise."""
    return (
        {"OMP_NUM_THREADS": "1"}
        | dict(inherited)
        | {
            "RANK": str(place.node * layout.on_each_node + local),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(layout.processes),
            "LOCAL_WORLD_SIZE": str(layout.on_each_node),
            "MASTER_ADDR": place.address,
            "MASTER_PORT": str(place.port),
        }
    )


def wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all, handing on the signals this process gets. Once one has failed the others are ended: they would wait for it for ever."""

    def forward(number: int, _frame: Any) -> None:
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        return _first_code(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_code(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    ended: dict[int, int] = {}
    deadline = float("inf")
    while len(ended) < len(processes) and time.monotonic() < deadline:
        for number, process in enumerate(processes):
            code = process.poll()
            if number in ended or code is None:
                continue
            ended[number] = code
            if code not in (0, SAVED):
                return code
            if code == SAVED:
                deadline = min(deadline, time.monotonic() + PATIENCE)
        time.sleep(0.05)
    return SAVED if SAVED in ended.values() else 0 if len(ended) == len(processes) else 1


def main(path: str) -> int:
    """The processes of this node of a SLURM job."""
    layout = WorldLayout(**read_json(path)["layout"])
    return run_node(Path(path), layout, slurm_place(os.environ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
