"""Ask Snakemake, in this process, which jobs a study has and which would run: a dry run that writes nothing.

The DAG is Snakemake's own, built through `snakemake.api`. Only its bookkeeping folder is another: reading `.snakemake` normally makes
folders in it, so here the records are read from there and everything else is in a temporary folder. No lock is taken or
respected: a study that is running elsewhere is planned as it is at this moment.
"""

import asyncio
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import snakemake.api
import snakemake.workflow
import yaml
from snakemake.exceptions import RuleException, WorkflowError
from snakemake.io import IOFile
from snakemake.logging import logger
from snakemake.persistence.file import FilePersistence
from snakemake.settings.enums import Quietness
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    ResourceSettings,
    SchedulingSettings,
    WorkflowSettings,
)

from mtkv.ops.planned_jobs import PlannedJob, Record
from mtkv.ops.rerun_reasons import causes_of, record_of

REMOTE_THREADS = 1_000_000  # cores of this machine do not limit jobs on other machines


class ProfileError(ValueError):
    """A profile that Snakemake cannot read; the message names it and the reason."""


@dataclass(frozen=True)
class Profile:
    """`slots`: jobs at once on a cluster, cores on this machine; `limits`: resources that all jobs share (a profile's `resources:`)."""

    executor: str = "local"
    slots: int = os.cpu_count() or 1
    limits: dict[str, int] = field(default_factory=dict)
    default_resources: Any = None
    set_resources: Any = field(default_factory=dict)
    set_threads: dict[str, int] = field(default_factory=dict)
    partitions: Path | None = None

    @property
    def remote(self) -> bool:
        """Whether jobs run on other machines."""
        return self.executor != "local"


def read_profile(folder: Path | None, slots: int | None = None) -> Profile:
    """The profile in `folder`, by Snakemake's own parser; None is this machine. `slots` overrides the profile's number.

    Raises ProfileError for a folder without a config, and for a config that needs what is not installed.
    """
    if folder is None:
        return Profile(slots=slots or os.cpu_count() or 1)
    path = _config_file(folder)
    args = _parsed(folder)
    executor = args.executor or "local"
    own = args.cores if executor == "local" else args.jobs
    cores = os.cpu_count() or 1
    number = min(own, cores) if isinstance(own, int) and executor == "local" else own
    named = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    table = next((named[key] for key in named if key.replace("_", "-") == "slurm-partition-config"), None)
    return Profile(
        executor=executor,
        slots=slots or (number if isinstance(number, int) else cores),
        limits=_shared(args),
        default_resources=args.default_resources,
        set_resources=args.set_resources or {},
        set_threads=args.set_threads or {},
        partitions=_partition_file(path, table),
    )


def _shared(args: Any) -> dict[str, int]:
    """Resources that all jobs share; those of scope "local" are shared within a group only and left out."""
    scopes = dict(args.set_resource_scopes or {})
    return {
        name: amount
        for name, value in dict(args.resources or {}).items()
        if isinstance(amount := getattr(value, "value", value), int) and scopes.get(name) != "local"
    }


def _config_file(folder: Path) -> Path:
    for pattern in ("config.v9+.yaml", "config.v8+.yaml", "config.yaml"):
        if (folder / pattern).is_file():
            return folder / pattern
    raise ProfileError(f"no profile in {folder}: there is no config.yaml; profiles of this repository lie in profiles/")


def _partition_file(config: Path, table: str | None) -> Path | None:
    if table is None:
        return None
    return next((path for path in (Path(table), config.parent / table) if path.is_file()), None)


def _parsed(folder: Path) -> Any:
    import contextlib
    import io

    from snakemake.cli import parse_args

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse_args(["--profile", str(folder.absolute()), "--workflow-profile", "none"])[1]
    except (SystemExit, Exception) as error:
        text = said.getvalue().strip().splitlines()
        detail = text[-1] if isinstance(error, SystemExit) and text else str(error)
        raise ProfileError(
            f"profile {folder}: {detail}; profiles of a cluster need its plugins (pip install 'mtkv[slurm]')"
        ) from None


BOOKKEEPING = Path(".snakemake")


@dataclass(frozen=True)
class DryRun:
    """`jobs`: all jobs behind the targets, inputs first; `elsewhere`: records of cards that none of them writes, by file."""

    jobs: list[PlannedJob]
    elsewhere: dict[str, Record]


class PlanError(RuntimeError):
    """Snakemake cannot make a plan; the message is Snakemake's own."""


def dry_run(
    targets: Sequence[str] = (),
    configfiles: Sequence[Path] = (),
    profile: Profile | None = None,
    folder: Path = Path(),
    snakefile: Path | None = None,
    cards: Iterable[str] = (),
) -> DryRun:
    """The jobs behind `targets` (rules or files; none: the whole study) of the workflow in `folder`, inputs first.

    Jobs that only gather (rule all) are left out. `cards`: card files, relative to `folder`, whose records are wanted too.
    Raises PlanError for targets that no rule makes and for what the Snakefile refuses. Where an event loop is running (a notebook),
    Snakemake, which starts one of its own, works in a thread.
    """
    work = partial(_dry_run, tuple(targets), tuple(configfiles), profile or Profile(), folder, snakefile, tuple(cards))
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _dry_run(
    targets: Sequence[str],
    configfiles: Sequence[Path],
    profile: Profile,
    folder: Path,
    snakefile: Path | None,
    cards: Iterable[str],
) -> DryRun:
    snakefile = (snakefile or folder / "Snakefile").absolute()
    settings = ResourceSettings(
        cores=REMOTE_THREADS if profile.remote else profile.slots,
        default_resources=profile.default_resources,
        overwrite_resources=profile.set_resources,
        overwrite_threads=profile.set_threads,
    )
    quiet = OutputSettings(dryrun=True, quiet={Quietness.ALL}, enable_file_logging=False)
    try:
        with _elsewhere(folder) as scratch, snakemake.api.SnakemakeApi(quiet) as api:
            planned = api.workflow(
                resource_settings=settings,
                config_settings=ConfigSettings(configfiles=[path.absolute() for path in configfiles]),
                workflow_settings=WorkflowSettings(runtime_source_cache_path=scratch),
                snakefile=snakefile,
                workdir=folder.absolute(),
            )
            planned.dag(DAGSettings(targets=frozenset(targets), force_incomplete=True))
            workflow = planned._workflow
            workflow.scheduling_settings = SchedulingSettings()
            workflow._prepare_dag(forceall=False, ignore_incomplete=False, lock_warn_only=True, nolock=True)
            workflow.async_run(workflow.dag.init())
            workflow.async_run(workflow.dag.update_checkpoint_dependencies())
            jobs = list(_jobs(workflow))
            own = {path for job in jobs for path in job.outputs}
            records = {path: record_of([IOFile(path)], workflow.persistence) for path in cards if path not in own}
            return DryRun(jobs, {path: record for path, record in records.items() if record is not None})
    except (WorkflowError, RuleException, SystemExit) as error:
        raise PlanError(str(error) or "Snakemake ended without a message") from error


def _jobs(workflow: Any) -> Iterator[PlannedJob]:
    dag, remembered = workflow.dag, workflow.persistence
    ordered = [job for level in dag.toposorted() for job in level if not job.rule.norun]
    numbers = {job: number for number, job in enumerate(ordered)}
    running = set(dag.needrun_jobs())
    for job, number in numbers.items():
        yield PlannedJob(
            number=number,
            rule=job.rule.name,
            wildcards=dict(job.wildcards.items()),
            inputs=tuple(map(str, job.input)),
            outputs=tuple(map(str, job.output)),
            params=dict(job.params.items()),
            threads=job.threads,
            resources={name: value for name, value in job.resources.items() if isinstance(value, int | str)},
            local=job.rule.name in workflow._localrules,
            above=tuple(sorted(numbers[other] for other in dag.dependencies[job] if other in numbers)),
            runs=job in running,
            causes=causes_of(job, dag, remembered) if job in running else (),
            record=record_of(job.output, remembered),
        )


@contextmanager
def _elsewhere(folder: Path) -> Iterator[Path]:
    """A context in which Snakemake is silent, reads its records from `folder` and writes only to a temporary folder."""
    real = (folder / BOOKKEEPING).absolute()

    with tempfile.TemporaryDirectory(prefix="mtkv-plan-") as name:
        scratch = Path(name)

        class ReadOnly(FilePersistence):
            def __init__(self, **settings: Any) -> None:
                super().__init__(**settings | {"path": scratch / "snakemake", "nolock": True})
                self._metadata_path = str(real / "metadata")
                self._incomplete_path = str(real / "incomplete")

            def _fetch_max_len(self, subject: str) -> int:
                return super()._fetch_max_len(str(scratch))

        with patch.object(snakemake.workflow, "FilePersistence", ReadOnly), patch.object(logger, "disabled", True):
            yield scratch
