"""One process of a training on several: `python -m mtkv.distill.worker request.json`, with torch's variables in the environment."""

import sys
from pathlib import Path
from typing import Any

import torch

from mtkv.distill.keeping import Keeping
from mtkv.distill.processes import rank
from mtkv.distill.request import Request
from mtkv.distill.spread import Spread
from mtkv.distill.strategies import check_strategy, join_processes
from mtkv.distill.train import train_arm
from mtkv.provenance.files import write_json
from mtkv.provenance.preemption import Preemption


def work(path: Path) -> None:
    """Do this process's part; the first process keeps the checkpoints and writes the facts."""
    request = Request.load(path)
    check_strategy(request.strategy)
    join_processes(request.strategy)
    try:
        how: Any = {"strategy": request.strategy, "stream": Spread.of(request.job.resources).stream}
        if rank() == 0:
            with Keeping.for_job(request.job) as keeping:
                write_json(request.result, train_arm(**request.arguments, keeping=keeping, **how))
        else:
            with Preemption() as preemption:
                train_arm(**request.arguments, keeping=Keeping(preemption=preemption), **how)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
