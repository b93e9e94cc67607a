"""Jobs of one machine fork from a process that has imported torch and the stages already: without it each spends seconds on that.

Snakemake runs a job's script as `.venv/bin/python .snakemake/scripts/….py` in a shell. `start` starts the server (`server`) and tells
that shell to call the client (`client`) under Python's name. The client hands its arguments, folder, environment and open files to the
server, which forks the job. Then the client stands for the job: it passes signals on, and ends as the job ends; where it is killed, the
job is too. So a job still is one process with its own memory, log, signals and exit status. What the server cannot take (it is not
ready, it is gone, the job has another environment, say more threads) runs as plain Python.

    Snakemake ──► bash ──► client ──socket: folder, variables, files; signals──► server ──fork──► job
                             ▲────────────────── "forked" or "plain"; exit status ─┘

Only where Snakemake runs jobs on this machine itself; never for SLURM, nor beside a GPU, whose driver cannot be forked.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtkv.provenance.code_digest import covered, stage_packages

FEWEST_JOBS = 4  # of those that import torch; below, starting the server costs more than it saves
DEVICES = ("nvidia[0-9]*", "kfd", "dxg")  # of CUDA, ROCm and WSL, in /dev
SHELL = "set -euo pipefail; "  # Snakemake's own default
THREADS = ("OMP_NUM", "GOTO_NUM", "OPENBLAS_NUM", "MKL_NUM", "VECLIB_MAXIMUM", "NUMEXPR_NUM")
WITHOUT_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # pyarrow's allocator
_running: list[tuple[subprocess.Popen[bytes], Path]] = []


def start(workflow: Any, shell: Any) -> None:
    """Start the server for the jobs that this run of Snakemake will make, and have `shell` (Snakemake's) use it.

    Does nothing where it would not pay or not be safe; MTKV_WARM=0 in the environment forbids it.
    """
    if possible(workflow) and Path(shell.get_executable() or "").name == "bash":
        found = [covered(job.params.get("code", "")) for job in workflow.dag.needrun_jobs()]
        stages = [stage.modules for stage in found if stage]
        if sum("torch" in stage_packages(*modules) for modules in stages) >= FEWEST_JOBS:
            shell.prefix(serve({name for modules in stages for name in modules}))


def possible(workflow: Any) -> bool:
    """Whether jobs are processes of this machine that may be forks."""
    return (
        sys.platform == "linux"
        and workflow.is_main_process
        and workflow.local_exec
        and "SLURM_JOB_ID" not in os.environ
        and os.environ.get("MTKV_WARM") != "0"
        and not any(found for name in DEVICES for found in Path("/dev").glob(name))
    )


def serve(modules: Iterable[str]) -> str:
    """Start a server that has imported `modules`; returns what a job's shell begins with to use it. `stop` ends it."""
    folder = Path(tempfile.mkdtemp(prefix="mtkv-"))
    # -P: the folder that Snakemake was started in holds no modules.
    command = [sys.executable, "-P", "-m", "mtkv.ops.warm_workers.server", str(folder / "socket"), *sorted(modules)]
    # As Snakemake does for a job of one thread. The pipe ends with this process, however it ends, and so does the server.
    threads = {f"{name}_THREADS": "1" for name in THREADS}
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, env=os.environ | threads | WITHOUT_THREAD, process_group=0
    )
    if not _running:
        atexit.register(stop)
    _running.append((server, folder))
    client = f"{sys.executable} -I -S {Path(__file__).with_name('client.py')} {folder / 'socket'}"
    # A function of the shell under the path of Python; braces are doubled for Snakemake, which formats the text.
    return f'{SHELL}{sys.executable}() {{{{ command {client} {sys.executable} "$@"; }}}}; '


def stop() -> None:
    """End the servers that this process started, as soon as their jobs have ended; later jobs are plain."""
    while _running:
        server, folder = _running.pop()
        with suppress(OSError):
            server.stdin.close()  # type: ignore[union-attr]
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(subprocess.TimeoutExpired):
            server.wait(timeout=5)
