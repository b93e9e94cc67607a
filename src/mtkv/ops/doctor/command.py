"""`mtkv doctor`: every check in turn, on the screen and as JSON."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from mtkv.ops.doctor import assets, cluster, gpus, packages, space
from mtkv.ops.doctor.checks import DoctorContext, Finding, error
from mtkv.provenance.files import write_json

if TYPE_CHECKING:
    from mtkv.config.study import Study

# In the order in which they are made and shown.
CHECKS: dict[str, Callable[[DoctorContext], Iterator[Finding]]] = {
    "python": packages.python,
    "packages": packages.packages,
    "extras": packages.extras,
    "cuda": gpus.cuda,
    "gpu memory": gpus.gpu_memory,
    "memory": space.memory,
    "disk": space.disk,
    "folders": space.folders,
    "shared storage": space.shared_storage,
    "models and data": assets.assets,
    "licences": assets.licences,
    "hub": assets.hub,
    "snakemake": space.snakemake,
    "slurm": cluster.slurm,
    "plan": space.plan,
}
MARKS = {"ok": "[green]✓[/]", "note": "[cyan]·[/]", "warning": "[yellow]![/]", "error": "[red]✗[/]"}


def examine(
    study: "Study", profile: Path | None, configfiles: list[Path], output: Path | None, console: Console
) -> bool:
    """Run every check and print its findings; return whether nothing would stop the study.

    `output` gets all findings as JSON; with `-` only that is printed.
    """
    context = DoctorContext(study, profile_folder=profile, configfiles=tuple(configfiles))
    alone = output == Path("-")
    found: dict[str, list[Finding]] = {}
    for name, findings in run_checks(context, CHECKS):
        found[name] = findings
        for finding in [] if alone else findings:
            console.print(f"{MARKS[finding.level]} [bold]{name}[/bold]: {escape(finding.message)}", highlight=False)
            if finding.fix:
                console.print(f"    → {escape(finding.fix)}", highlight=False)
    counts = {level: sum(finding.level == level for each in found.values() for finding in each) for level in MARKS}
    if alone:
        print(json.dumps(as_json(study.study, found), indent=2))
    else:
        console.print(_verdict(study.study, counts))
    if output and not alone:
        write_json(output, as_json(study.study, found))
    return counts["error"] == 0


def run_checks(context: DoctorContext, names: Iterable[str]) -> Iterator[tuple[str, list[Finding]]]:
    """(name, findings) of each check in turn. A check that raises becomes a finding itself, and the others still run."""
    for name in names:
        try:
            yield name, list(CHECKS[name](context))
        except Exception as refused:
            message = f"could not be checked: {type(refused).__name__}: {refused}"
            yield name, [error(message, "mend what the message names; if it names nothing, report it")]


def as_json(study: str, found: dict[str, list[Finding]]) -> dict[str, object]:
    """All findings as JSON-able values."""
    lines = [
        {"check": name, "level": f.level, "message": f.message, "fix": f.fix}
        for name, each in found.items()
        for f in each
    ]
    return {"study": study, "good": all(line["level"] != "error" for line in lines), "findings": lines}


def _verdict(study: str, counts: dict[str, int]) -> str:
    if counts["error"]:
        return f"[red]{study} would not run here: {counts['error']} to mend first, {counts['warning']} warnings[/red]"
    return f"[green]{study} can run here[/green], {counts['warning']} warnings"
