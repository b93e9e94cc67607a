"""Snakemake's lock on the folder of the workflow."""

from collections.abc import Iterator

from mtkv.doctor.checks import Finding, Patient, check
from mtkv.status.notes import alive
from mtkv.status.snakemake_log import read_logs


@check("snakemake")
def snakemake(patient: Patient) -> Iterator[Finding]:
    """No Snakemake is at work in this folder, and none was killed there."""
    internal = patient.folder / ".snakemake"
    notes = read_logs(internal / "log", latest=1)
    state = alive(internal, notes.host)
    if state == "killed":
        yield Finding(
            "error",
            "a Snakemake was killed here and left its lock",
            "snakemake --unlock (with the study's --configfile), then start it again",
        )
    elif state == "elsewhere":
        message = f"a lock of a Snakemake on {notes.host}"
        yield Finding("warning", message, "look there whether it runs; if it does not: snakemake --unlock")
    elif state == "unlocked":
        message = "a Snakemake is at work in this folder, and another one that ended here took its lock away"
        yield Finding(
            "warning", message, "start none until it has ended (`mtkv status`): nothing would refuse a second one"
        )
    elif state == "here":
        yield Finding(
            "note",
            "a Snakemake is at work in this folder now",
            "`mtkv status` shows how far it is; a second one waits or is refused",
        )
    else:
        yield Finding("ok", "no lock in this folder")
