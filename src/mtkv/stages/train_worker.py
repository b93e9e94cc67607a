"""One process of a training on several: `python -m mtkv.stages.train_worker request.json`, with torch's variables in the environment."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mtkv.checkpointing.preemption import SAVED, Preemption, SavedExit
from mtkv.provenance.files import read_json, write_json
from mtkv.stages.train import train_arm
from mtkv.training.checkpointing import CheckpointPolicy
from mtkv.training.data_parallel import rank
from mtkv.training.launcher import run
from mtkv.training.strategies import check_strategy, join_processes
from mtkv.training.training_run import JobFiles, Request
from mtkv.training.world_layout import WorldLayout


def train(job: Any, **arguments: Any) -> dict[str, Any]:
    """`train_arm(**arguments)` for a Snakemake job (the `snakemake` object of a script), over the processes that its resources name.

    Returns the facts for the card. Raises SavedExit when the processes saved and stopped, RuntimeError when one of them failed.
    """
    spread = WorldLayout.of(job.resources)
    if spread.processes == 1:
        from mtkv.stages.train import train_arm
        from mtkv.training.checkpointing import CheckpointPolicy

        with CheckpointPolicy.for_job(job) as keeping:
            return train_arm(**arguments, keeping=keeping, stream=spread.stream)
    # In the working directory, which all machines of a job share; /tmp they do not.
    with tempfile.TemporaryDirectory(prefix=".training-", dir=".") as folder:
        path = Path(folder).resolve() / "request.json"
        result = path.with_name("result.json")
        Request(JobFiles.of(job), spread.strategy, arguments, result).save(path)
        code = run(path, spread)
        if code == SAVED:
            raise SavedExit
        if code != 0:
            raise RuntimeError(f"a process of the training ended with code {code}; its own words are above")
        facts: dict[str, Any] = read_json(result)
    return facts


def work(path: Path) -> None:
    """Do this process's part; the first process keeps the checkpoints and writes the facts."""
    request = Request.load(path)
    check_strategy(request.strategy)
    join_processes(request.strategy)
    try:
        how: Any = {"strategy": request.strategy, "stream": WorldLayout.of(request.job.resources).stream}
        if rank() == 0:
            with CheckpointPolicy.for_job(request.job) as keeping:
                write_json(request.result, train_arm(**request.arguments, keeping=keeping, **how))
        else:
            with Preemption() as preemption:
                train_arm(**request.arguments, keeping=CheckpointPolicy(preemption=preemption), **how)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
