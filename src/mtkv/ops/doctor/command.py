"""`mtkv doctor`: every check in turn, on the screen and as JSON."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from mtkv.ops.doctor import assets, cluster, folders, gpu_memory, gpus, hub, packages, space  # noqa: F401 (they register their checks)
from mtkv.ops.doctor.checks import CHECKS, DoctorContext, Finding, run_checks
from mtkv.provenance.files import write_json

if TYPE_CHECKING:
    from mtkv.config.study import Study

ORDER = (
    "python",
    "packages",
    "extras",
    "cuda",
    "gpu memory",
    "memory",
    "disk",
    "folders",
    "shared storage",
    "models and data",
    "licences",
    "hub",
    "snakemake",
    "slurm",
    "plan",
)
MARKS = {"ok": "[green]✓[/]", "note": "[cyan]·[/]", "warning": "[yellow]![/]", "error": "[red]✗[/]"}


def examine(
    study: "Study", profile: Path | None, configfiles: list[Path], output: Path | None, console: Console
) -> bool:
    """Run every check and print its findings; return whether nothing would stop the study.

    `output` gets all findings as JSON; with `-` only that is printed.
    """
    patient = DoctorContext(study, profile_folder=profile, configfiles=tuple(configfiles))
    alone = output == Path("-")
    found: dict[str, list[Finding]] = {}
    for name, findings in run_checks(patient, ORDER):
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


assert set(ORDER) == set(CHECKS)
