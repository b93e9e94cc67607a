"""Room for the study: Snakemake's lock on the folder, free disk against the plan's bytes, memory and cores against what jobs ask for."""

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mtkv.ops.doctor.checks import DoctorContext, Finding, check
from mtkv.ops.plan.limits import amount
from mtkv.ops.status.snakemake_log import alive, read_logs


@check("snakemake")
def snakemake(patient: DoctorContext) -> Iterator[Finding]:
    """No Snakemake is at work in this folder, and no killed one left its lock."""
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


GROUP = "/sys/fs/cgroup/memory.max"
STAGES = ("data", "teachers", "maps", "train", "predict")
FEW_FILES = 100_000  # free inodes


@check("plan")
def plan(patient: DoctorContext) -> Iterator[Finding]:
    """The problems that `mtkv plan` finds: disk, time limits, partitions."""
    from mtkv.ops.plan.plan import make_plan
    from mtkv.ops.snakemake_dag import PlanError

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = make_plan(patient.study, patient.configfiles, profile=patient.profile, folder=patient.folder)
    except PlanError as error:
        yield Finding(
            "error", f"Snakemake cannot plan the study: {error}", "mend what it names; `mtkv plan` shows more"
        )
        return
    for problem in found.problems:
        said, _, fix = problem.rpartition("; ")
        yield Finding("error", said or problem, fix if said else "see `mtkv plan`")
    if found.copied:
        said, _, fix = found.copied.rpartition("; ")
        yield Finding("warning", said, fix)
    unknown = [note for note in found.notes if note.startswith("not counted")]
    free = shutil.disk_usage(_existing(patient.folder / "results")).free
    counted = f", without {len(unknown)} models that are not fetched yet" if unknown else ""
    jobs = f"{len(found.running)} of {len(found.jobs)} jobs to run"
    level, fix = ("note", "see again after `snakemake assets`") if unknown else ("ok", "")
    yield Finding(level, f"{jobs}; {amount(found.written)} more on disk{counted}, {amount(free)} free", fix)  # type: ignore[arg-type]


@check("disk")
def disk(patient: DoctorContext) -> Iterator[Finding]:
    """Every folder that is written to has room, in bytes and in files."""
    seen: set[int] = set()
    for name in ("results", "checkpoints", "assets"):
        place = _existing(patient.folder / name)
        if os.stat(place).st_dev in seen:
            continue
        seen.add(os.stat(place).st_dev)
        status = os.statvfs(place)
        free = status.f_bavail * status.f_frsize
        if free < 1e9:
            yield Finding(
                "error",
                f"{name}/: {amount(free)} free",
                "free some space, or put the folder on a larger disk (a symbolic link will do)",
            )
        elif status.f_files and status.f_favail < FEW_FILES:
            yield Finding(
                "warning",
                f"{name}/: room for {status.f_favail:,} more files only",
                "remove files that are not needed; ask for a larger quota",
            )
        else:
            yield Finding("ok", f"{name}/: {amount(free)} free")


@check("memory")
def memory(patient: DoctorContext) -> Iterator[Finding]:
    """Memory and cores of this machine against the largest job; on a cluster the partitions are checked instead."""
    if patient.profile.remote:
        yield Finding("ok", "jobs get their memory on the cluster's nodes")
        return
    here = memory_mb()
    asked = {stage: getattr(patient.study.resources, stage) for stage in STAGES}
    stage = max(asked, key=lambda name: asked[name].mem_mb)
    most, cores = asked[stage].mem_mb, os.cpu_count() or 1
    if most > here:
        message = f"a job of {stage} asks for {most:,} MB, this machine has {here:,.0f} MB"
        yield Finding(
            "warning", message, f"lower resources.{stage}.mem_mb if it needs less, or run where there is more memory"
        )
    else:
        yield Finding("ok", f"{here:,.0f} MB; the largest job ({stage}) asks for {most:,} MB; {cores} cores")
    if (threads := max(need.threads for need in asked.values())) > cores:
        yield Finding("note", f"a job asks for {threads} threads, here are {cores} cores: Snakemake gives it those")


def memory_mb() -> float:
    """MB of this machine's memory, or the smaller limit of a container or SLURM job."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    try:
        text = Path(GROUP).read_text(encoding="ascii").strip()
        return min(whole, int(text) / 1e6) if text.isdigit() else whole
    except OSError:
        return whole


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
