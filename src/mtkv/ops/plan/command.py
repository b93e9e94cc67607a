"""The command `mtkv plan`: a plan as text for a terminal and as JSON."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mtkv.config.errors import ConfigError
from mtkv.config.study import Study, read_study
from mtkv.ops.cost_model.estimate import DEFAULT_GPU, DEVICES, UTILISATION
from mtkv.ops.cost_model.past_runs import amount
from mtkv.ops.plan.explain import Explained, explain, short
from mtkv.ops.planned_jobs import Cause, PlannedJob
from mtkv.provenance.files import write_json

if TYPE_CHECKING:
    from mtkv.ops.plan.plan import Plan, StageRow

SHOWN = 12  # reasons shown; the rest is only counted


def duration(seconds: float) -> str:
    """Seconds as people read them: 45 s, 12 min, 3.5 h, 2.1 d."""
    for unit, size, shown in (("d", 86400, 2 * 86400), ("h", 3600, 2 * 3600), ("min", 60, 120)):
        if seconds >= shown:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def print_plan(plan: "Plan", console: Console, each: bool = False) -> None:
    """Problems first, then stages, reasons and totals. `each`: also one line per job."""
    for problem in plan.problems:
        console.print(f"[bold red]![/] {escape(problem)}")
    if plan.copied:
        console.print(f"[bold green]=[/] {escape(plan.copied)}", soft_wrap=True)
    if not plan.running:
        console.print("Nothing to be done: every output is there and up to date.")
        return
    console.print(_stage_table(plan))
    if each:
        console.print(_job_table(plan))
    lines = reasons(plan.running)
    for line in lines[:SHOWN]:
        console.print(f"  {escape(line)}")
    if len(lines) > SHOWN:
        console.print(f"  … and {len(lines) - SHOWN} more; --each or --json has all")
    chain = " → ".join(job.label for job in plan.critical)
    total, least = duration(plan.total_seconds), duration(plan.critical_seconds)
    more = "more than " if any(estimate.basis == "unknown" for estimate in plan.estimates.values()) else ""
    console.print(f"{more}{total} on {plan.slots} slots; {least} at least: {escape(chain)}")
    console.print(f"{more}{plan.gpu_hours:.1f} GPU-hours; {amount(plan.written)} more on disk")
    for note in plan.notes:
        console.print(f"[dim]{escape(note)}[/]")


def print_explained(found: Sequence[Explained], target: str, console: Console) -> None:
    """For each job that runs for causes of its own: the causes, and its chain to the target."""
    if not found:
        console.print(f"{escape(target)} is up to date: nothing has to run for it.")
        return
    console.print(f"{escape(target)} has to be made, because of:")
    alike: dict[tuple[str, ...], list[Explained]] = {}
    for entry in found:
        alike.setdefault((entry.job.rule, *entry.sentences), []).append(entry)
    for first, *others in alike.values():
        more = f" (and {len(others)} alike: {', '.join(entry.job.label for entry in others)})" if others else ""
        console.print(f"[bold]{escape(first.job.label)}[/]{escape(more)}")
        for sentence in first.sentences:
            console.print(f"  {escape(sentence)}")
        if len(first.chain) > 1:
            console.print(f"  [dim]then {escape(' → '.join(job.label for job in first.chain[1:]))}[/]")


def reasons(running: Sequence[PlannedJob]) -> list[str]:
    """One line for each cause of its own that a job has, with the rule and the number of its jobs that share it."""
    counted: dict[tuple[str, str], int] = {}
    for job in running:
        for line in dict.fromkeys(line for cause in job.causes if not cause.derived for line in _lines(cause)):
            counted[job.rule, line] = counted.get((job.rule, line), 0) + 1
    return [f"{rule} ({count}): {line}" for (rule, line), count in counted.items()]


def plan_json(plan: "Plan") -> dict[str, Any]:
    """A plan as JSON-able values; seconds, bytes, GPU-hours."""
    return {
        "problems": plan.problems,
        "copied": plan.copied,
        "notes": plan.notes,
        "slots": plan.slots,
        "total_seconds": plan.total_seconds,
        "critical_seconds": plan.critical_seconds,
        "critical": [job.label for job in plan.critical],
        "gpu_hours": plan.gpu_hours,
        "bytes": plan.written,
        "stages": [vars(stage) for stage in plan.stages],
        "jobs": [_job_json(job, plan) for job in plan.running],
    }


def explained_json(found: Sequence[Explained]) -> list[dict[str, Any]]:
    """The explanation of a target as JSON-able values."""
    return [
        {"job": entry.job.label, "why": list(entry.sentences), "chain": [job.label for job in entry.chain]}
        for entry in found
    ]


def _job_json(job: PlannedJob, plan: "Plan") -> dict[str, Any]:
    estimate = plan.estimates[job.number]
    facts = {"rule": job.rule, "wildcards": dict(job.wildcards), "kind": job.kind, "gpus": job.gpus}
    return facts | {"causes": [asdict(cause) for cause in job.causes]} | vars(estimate)


def _stage_table(plan: "Plan") -> Table:
    table = Table(show_footer=True)
    running, jobs = len(plan.running), len(plan.jobs)
    columns = {
        "stage": "all",
        "jobs": f"{running}/{jobs}",
        "why": "",
        "longest": "",
        "together": duration(sum(stage.seconds for stage in plan.stages)),
        "GPU-h": f"{plan.gpu_hours:.1f}",
        "disk": amount(plan.written),
        "from": "",
    }
    for name, footer in columns.items():
        table.add_column(name, footer, justify="left" if name in ("stage", "why", "from") else "right")
    for stage in filter(lambda stage: stage.running, plan.stages):
        amounts = ("?",) * 4 if set(stage.basis) == {"unknown"} else _amounts(stage)
        counted = (f"{stage.running}/{stage.jobs}", _counts(stage.kinds))
        table.add_row(stage.rule, *counted, *amounts, _counts(stage.basis))
    return table


def _amounts(stage: "StageRow") -> tuple[str, ...]:
    return duration(stage.longest), duration(stage.seconds), f"{stage.gpu_hours:.1f}", amount(stage.written)


def _job_table(plan: "Plan") -> Table:
    table = Table("job", "why", "time", "disk", "from")
    for job in plan.running:
        estimate = plan.estimates[job.number]
        why = ", ".join(dict.fromkeys(cause.kind for cause in job.causes))
        row = (job.label, why, duration(estimate.seconds), amount(estimate.written), estimate.basis)
        table.add_row(*map(escape, row))
    return table


def _counts(counts: dict[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _lines(cause: Cause) -> list[str]:
    if cause.kind == "config":
        return [f"{change.path}: {short(change.old)} → {short(change.new)}" for change in cause.changes]
    if cause.kind == "code":
        return ["its code changed (--explain FILE names the modules)"]
    if cause.kind == "input" and cause.files:
        return [f"input changed: {path}" for path in cause.files]
    said = {"new": "never made", "missing": "made once and gone", "incomplete": "left by a killed job"}
    return [said.get(cause.kind, "another set of input files")]


BASE_CONFIG = Path("config/config.yaml")
Overlays = Annotated[list[Path], typer.Option("--configfile", help="Overlay of the default study; may be repeated.")]


class PlanOptions(BaseModel):
    """What `mtkv plan` is asked, as on its command line."""

    targets: Annotated[list[str], typer.Argument(help="Files or rules; none: the whole study.")] = []
    configfile: Overlays = []
    profile: Annotated[Path | None, typer.Option(help="Snakemake profile, as profiles/slurm.")] = None
    explain: Annotated[str | None, typer.Option(help="Why this file will be made, back to what changed.")] = None
    slots: Annotated[int | None, typer.Option(min=1, help="Jobs at once (cores here); else as in the profile.")] = None
    gpu: Annotated[str, typer.Option(help=f"GPU to assume where none is named: {', '.join(DEVICES)}.")] = DEFAULT_GPU
    utilisation: Annotated[float, typer.Option(min=0.001, max=1, help="Share of its FLOP/s to assume.")] = UTILISATION
    each: Annotated[bool, typer.Option("--each", help="Also a line for every job.")] = False
    output: Annotated[Path | None, typer.Option("--json", help="Also write everything as JSON.")] = None


def plan(**given: Any) -> None:
    """What will run and why, how long it takes and how large it gets, before anything is sent.

    Times are measured where a past run tells, else estimated by a stated model. Nothing is run and nothing of the study is written.
    """
    from mtkv.ops.plan.plan import make_plan
    from mtkv.ops.snakemake_dag import PlanError, ProfileError, read_profile

    asked = PlanOptions(**given)
    study = study_or_refusal(asked.configfile)
    if asked.gpu not in DEVICES:
        raise typer.BadParameter(f"{asked.gpu!r} is not one of {', '.join(DEVICES)}", param_hint="--gpu")
    console = Console()
    wanted = [asked.explain] if asked.explain else asked.targets
    try:
        profile = read_profile(asked.profile, asked.slots)
        found = make_plan(study, asked.configfile, wanted, profile, gpu=asked.gpu, utilisation=asked.utilisation)
    except (PlanError, ProfileError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    written = plan_json(found)
    if asked.explain:
        chain = explain(found.jobs, asked.explain)
        print_explained(chain, asked.explain, console)
        written["explained"] = explained_json(chain)
    else:
        print_plan(found, console, asked.each)
    if asked.output:
        write_json(asked.output, written)


# typer reads a command's options from its signature.
plan.__signature__ = inspect.signature(PlanOptions)  # type: ignore[attr-defined]
plan.__annotations__ = get_type_hints(PlanOptions, include_extras=True)


def study_or_refusal(overlays: list[Path]) -> Study:
    """The default study with overlays; a config that is not valid is a wrong parameter of the command line."""
    try:
        return read_study(BASE_CONFIG, *overlays)
    except ConfigError as error:
        raise typer.BadParameter(f"the study's config is not valid:\n{error}") from None
