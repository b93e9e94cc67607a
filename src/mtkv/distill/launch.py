"""Start the processes of one training, and end with what they end with.

One process: the training runs in this one. Several on this machine: each is `python -m mtkv.distill.worker request.json`, with the
variables that torch and accelerate look for. Several machines: srun starts this module once on each.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtkv.distill.request import Job, Request
from mtkv.distill.spread import Place, Spread, free_port, slurm_place
from mtkv.provenance.files import read_json
from mtkv.provenance.preemption import SAVED, SavedExit

FORWARDED = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
PATIENCE = 300.0  # seconds for the others to save, once one has; a process that fails takes the others with it at once
WORKER, NODE = "mtkv.distill.worker", "mtkv.distill.launch"


def train(job: Any, **arguments: Any) -> dict[str, Any]:
    """`train_arm(**arguments)` for a Snakemake job (the `snakemake` object of a script), over the processes that its resources name.

    Returns the facts for the card. Raises SavedExit when the processes saved and stopped, RuntimeError when one of them failed.
    """
    spread = Spread.of(job.resources)
    if spread.processes == 1:
        from mtkv.distill.keeping import Keeping
        from mtkv.distill.train import train_arm

        with Keeping.for_job(job) as keeping:
            return train_arm(**arguments, keeping=keeping, stream=spread.stream)
    # In the working directory, which all machines of a job share; /tmp they do not.
    with tempfile.TemporaryDirectory(prefix=".training-", dir=".") as folder:
        path = Path(folder).resolve() / "request.json"
        result = path.with_name("result.json")
        Request(Job.of(job), spread.strategy, arguments, result).save(path)
        code = run(path, spread)
        if code == SAVED:
            raise SavedExit
        if code != 0:
            raise RuntimeError(f"a process of the training ended with code {code}; its own words are above")
        facts: dict[str, Any] = read_json(result)
    return facts


def run(request: Path, spread: Spread) -> int:
    """Exit code of the whole: that of the first process that failed, else 75 when they saved and stopped, else 0."""
    if spread.nodes > 1:
        return wait([subprocess.Popen(srun_command(request, spread))])
    return run_node(request, spread, Place(port=free_port()))


def srun_command(request: Path, spread: Spread) -> list[str]:
    """What starts this module once on every node of the SLURM job; a node that fails ends the others."""
    step = ["srun", f"--nodes={spread.nodes}", f"--ntasks={spread.nodes}", "--ntasks-per-node=1", "--cpu-bind=none"]
    return [*step, "--kill-on-bad-exit=0", sys.executable, "-m", NODE, str(request)]


def run_node(request: Path, spread: Spread, place: Place) -> int:
    """Start this machine's processes and wait for them."""
    command = [sys.executable, "-m", WORKER, str(request)]
    environments = [worker_environment(spread, place, local, os.environ) for local in range(spread.on_each_node)]
    return wait([start(command, environment) for environment in environments])


def start(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """One process of the training."""
    return subprocess.Popen(command, env=environment)


def worker_environment(spread: Spread, place: Place, local: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables of torch.distributed for process number `local` of a machine; one CPU thread unless said otherwise."""
    return (
        {"OMP_NUM_THREADS": "1"}
        | dict(inherited)
        | {
            "RANK": str(place.node * spread.on_each_node + local),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(spread.processes),
            "LOCAL_WORLD_SIZE": str(spread.on_each_node),
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
    request = Request.load(Path(path))
    return run_node(Path(path), Spread.of(request.job.resources), slurm_place(os.environ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
