"""Snakemake and `mtkv` in a folder with a copy of the package, each in a fork of a process that has imported Snakemake but not the package.

For tests of what they do there, not of how a process of theirs begins: that takes several seconds less.
"""

import atexit
import multiprocessing
import os
import sys
import threading
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# What Snakemake imports until it knows its jobs, and those of the package's imports that take longest.
IMPORTED = ["snakemake.cli", "snakemake.api", "snakemake.report", "snakemake.script", "snakemake_executor_plugin_slurm"]
IMPORTED += ["smart_open", "yte", "jsonschema", "jinja2", "nbformat", "PIL", "pydantic", "typer", "rich.console"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(IMPORTED)


def _work(folder: Path, main: str, arguments: list[str], environment: dict[str, str], words: Path) -> None:
    for stream in (1, 2):
        os.dup2(os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, str(folder / "src"))
    module, _, function = main.partition(":")
    sys.argv = [module.partition(".")[0], *arguments]
    _with_light_server()
    try:
        getattr(import_module(module), function)(arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing does not


def _with_light_server() -> None:
    """Jobs of scripts that make files only are forked too, from a server that has not imported torch for them."""
    from mtkv.ops import warm_workers

    def start(workflow: Any, shell: Any) -> None:
        if warm_workers.possible(workflow):
            shell.prefix(warm_workers.serve(["snakemake.script"]))

    warm_workers.start = start


def counting_timers(arguments: list[str]) -> None:
    """Snakemake that says at the end how many timers it started."""
    from snakemake.cli import main

    timers, begin = [], threading.Timer.start
    threading.Timer.start = lambda timer: (timers.append(timer), begin(timer))  # type: ignore[method-assign,func-returns-value]
    try:
        main(arguments)
    finally:
        print("timers:", len(timers))


def started(folder: Path, words: Path, *arguments: Any, main: str = "snakemake.cli:main", **variables: str) -> Any:
    """A process of Snakemake (or of another `main`) in `folder` that uses the package in its `src` and prints to the file `words`."""
    environment = os.environ | {"PYTHONPATH": str(folder / "src")} | variables
    process = FORKS.Process(target=_work, args=(folder, main, [*map(str, arguments)], environment, words))
    process.start()
    return process


def ended(folder: Path, *arguments: Any, **how: str) -> tuple[int, str]:
    """Exit code and words of the same, once it has ended."""
    with TemporaryDirectory() as place:
        words = Path(place, "words")
        process = started(folder, words, *arguments, **how)
        process.join()
        return process.exitcode, words.read_text(encoding="utf-8")
