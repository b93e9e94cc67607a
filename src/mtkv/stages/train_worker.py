"""A training over the processes that its resources name: `train` in the job's own process, `work` in each worker.

A worker is `python -m mtkv.stages.train_worker request.json`, with torch's variables in its environment (see `mtkv.training.launcher`).
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mtkv.checkpointing.preemption import SAVED, Preemption, SavedExit
from mtkv.provenance.files import read_json, write_json, write_text
from mtkv.stages.train import TrainingRun, WorkerRequest, train_arm
from mtkv.training.checkpointing import CheckpointPolicy, SavedJob
from mtkv.training.data_parallel import rank
from mtkv.training.launcher import launch
from mtkv.training.strategies import check_strategy, join_processes
from mtkv.training.world_layout import WorldLayout


def train(job: Any, run: TrainingRun) -> dict[str, Any]:
    """`train_arm(run)` for a Snakemake job (the `snakemake` object of a script), over the processes that its resources name.

    Returns the facts for the card. Raises SavedExit when the processes saved and stopped, RuntimeError when one of them failed.
    """
    layout, saved = WorldLayout.of(job.resources), SavedJob.of(job)
    if layout.processes == 1:
        with CheckpointPolicy.of(saved) as policy:
            return train_arm(run, policy, WorldLayout(stream=layout.stream))
    # In the working directory, which all machines of a job share; /tmp they do not.
    with tempfile.TemporaryDirectory(prefix=".training-", dir=".") as folder:
        path = Path(folder).resolve() / "request.json"
        request = WorkerRequest(run=run, job=saved, layout=layout, result=path.with_name("result.json"))
        write_text(path, request.model_dump_json())
        code = launch(path, layout)
        if code == SAVED:
            raise SavedExit
        if code != 0:
            raise RuntimeError(f"a process of the training ended with code {code}; its own words are above")
        facts: dict[str, Any] = read_json(request.result)
    return facts


def work(path: Path) -> None:
    """Train as the request in `path` says, as one of its processes; the first keeps the checkpoints and writes the facts."""
    request = WorkerRequest.model_validate_json(path.read_text(encoding="utf-8"))
    check_strategy(request.layout.strategy)
    join_processes(request.layout.strategy)
    try:
        if rank() == 0:
            with CheckpointPolicy.of(request.job) as policy:
                write_json(request.result, train_arm(request.run, policy, request.layout))
        else:
            with Preemption() as preemption:
                train_arm(request.run, CheckpointPolicy(preemption=preemption), request.layout)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
