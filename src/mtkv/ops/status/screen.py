"""A look at a study on the screen: a table of the stages, the running jobs, and what failed with the log to read."""

from datetime import timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Column, Table

from mtkv.ops.status.look import Look, last_words
from mtkv.ops.status.states import STATES, Status

COLOURS = {
    "done": "green",
    "running": "cyan",
    "queued": "yellow",
    "failed": "red",
    "stopped": "magenta",
    "waiting": "dim",
}
SNAKEMAKE = {
    "here": "Snakemake is at work on this machine",
    "unlocked": "Snakemake is at work on this machine; another run here, which has ended, took its lock away: start none meanwhile",
    "elsewhere": "Snakemake is at work on {host}, or was killed there",
    "killed": "Snakemake was killed here and left its lock: `snakemake --unlock`, then start it again",
    "no": "Snakemake is not running",
}
SHOWN = 12  # jobs shown per table
SILENT = 300  # seconds without progress after which a running job is pointed out


def render(look: Look) -> RenderableType:
    """The whole look, for a console of any width."""
    parts: list[RenderableType] = [_head(look), _stages(look)]
    parts += [table for table in (_working(look), _troubles(look)) if table is not None]
    return Group(*parts)


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    whole = timedelta(seconds=round(seconds))
    minutes, hours = whole.seconds // 60 % 60, whole.seconds // 3600
    if whole.days:
        return f"{whole.days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{whole.seconds} s"


def _head(look: Look) -> str:
    done, total = len(look.of("done")), len(look.statuses)
    said = SNAKEMAKE[look.snakemake].format(host=look.host)
    slurm = "; SLURM answers" if look.slurm else ""
    return f"[bold]{escape(look.study)}[/bold]: {done} of {total} jobs done; {_rest(look)}\n{said}{slurm}"


def _rest(look: Look) -> str:
    left, estimate = len(look.statuses) - len(look.of("done")), look.estimate
    if not left:
        return "nothing is left"
    if estimate.seconds is None:
        return "no job of these rules has finished yet, so nothing is known of the time left"
    many = f"{estimate.at_once} jobs at once" if estimate.at_once > 1 else "one job at a time"
    if estimate.unknown:
        return f"at least {duration(estimate.seconds)} left with {many}: of {', '.join(estimate.unknown)} none has finished yet"
    return f"about {duration(estimate.seconds)} left with {many}"


def _stages(look: Look) -> Table:
    table = Table("stage", *(f"[{COLOURS[state]}]{state}" for state in STATES), box=None, padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for rule, counts in look.counts().items():
        table.add_row(rule, *(f"[{COLOURS[state]}]{counts[state]}" if counts[state] else "·" for state in STATES))
    return table


def _working(look: Look) -> Table | None:
    jobs = look.of("running", "queued")
    if not jobs:
        return None
    table = Table("job", "state", "progress", "loss", "GPU", "where", box=None, padding=(0, 2, 0, 0))
    for status in jobs[:SHOWN]:
        facts = status.progress.facts if status.progress else {}
        where = " ".join(filter(None, [status.place, status.note and f"({status.note})", _silence(look, status)]))
        state = f"[{COLOURS[status.state]}]{status.state}"
        table.add_row(status.job.name, state, _progress(status), _number(facts.get("loss")), _gpu(facts), escape(where))
    if len(jobs) > SHOWN:
        table.add_row(f"… and {len(jobs) - SHOWN} more")
    return table


def _troubles(look: Look) -> Table | None:
    jobs = look.of("failed", "stopped")
    if not jobs:
        return None
    table = Table(
        "job", "state", Column("read this log; its last line", overflow="fold"), box=None, padding=(0, 2, 0, 0)
    )
    for status in jobs[:SHOWN]:
        log, words = last_words(look.folder, status.logs)
        note = " ".join(filter(None, [status.note, _progress(status) and f"({_progress(status)})"]))
        text = "\n".join(filter(None, [escape(log), escape(words[:200]), escape(note)]))
        table.add_row(status.job.name, f"[{COLOURS[status.state]}]{status.state}", text)
    if len(jobs) > SHOWN:
        table.add_row(f"… and {len(jobs) - SHOWN} more")
    return table


def _progress(status: Status) -> str:
    progress = status.progress
    if progress is None:
        return duration(status.elapsed) if status.elapsed else ""
    left = (progress.total - progress.done) / progress.rate if progress.rate and status.state == "running" else None
    return f"{progress.done}/{progress.total} {progress.unit}" + (f", {duration(left)} left" if left else "")


def _silence(look: Look, status: Status) -> str:
    """How long ago a running job last reported progress, where that is long; else empty."""
    said = status.progress.updated if status.progress else None
    silent = (look.when - said).total_seconds() if said and status.state == "running" else 0.0
    return f"silent for {duration(silent)}" if silent > SILENT else ""


def _gpu(facts: dict[str, Any]) -> str:
    memory, use = facts.get("gpu_memory_mb"), facts.get("gpu_utilisation")
    shown = [f"{memory / 1000:.1f} GB" if memory else "", f"{use:.0f} %" if use is not None else ""]
    return ", ".join(filter(None, shown))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""
