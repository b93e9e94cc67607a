"""Room for the study: folders that can be written, disks, memory and cores, Snakemake's lock, and what the plan runs into.

Of the file system under results/ and checkpoints/: writing, atomic rename, exclusive creation, fsync, latency, and its clock.
"""

import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from mtkv.checkpointing.lock import INTERVAL, MISSED
from mtkv.ops.cost_model.past_runs import amount, existing
from mtkv.ops.doctor.checks import DoctorContext, Finding, error, note, ok, warning
from mtkv.ops.status.snakemake_log import alive, read_logs

WRITTEN = ("results", "checkpoints", ".snakemake")
TRIES = 5
SLOW = 0.1  # seconds of one create + stat + rename
SLOW_SYNC = 1.0
SKEW = 2.0  # seconds between the file server's clock and ours that Snakemake's comparison of times tolerates
LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "zfs", "f2fs")


@dataclass(frozen=True)
class Measured:
    """Seconds of one create + stat + rename and of one fsync (medians); `skew`: how far the file server's clock is ahead."""

    rename: float
    sync: float
    skew: float


def folders(context: DoctorContext) -> Iterator[Finding]:
    """Each folder the study writes to works, tried in a temporary folder that is removed again."""
    for name in WRITTEN:
        place = existing(context.folder / name)
        try:
            found = measure(place)
        except OSError as refused:
            fix = "get the right to write there, or work in another folder"
            yield error(f"{name}/: {refused.strerror or refused} ({place})", fix)
        else:
            yield from _judged(name, found)


def shared_storage(context: DoctorContext) -> Iterator[Finding]:
    """A cluster's nodes must see the folder of the workflow."""
    if not context.profile.remote:
        return
    place = context.folder.resolve()
    kind = file_system(place)
    if kind in LOCAL:
        fix = "clone the repository into shared storage (home, project or scratch), unless this one is exported to the nodes"
        yield warning(
            f"{place} is on {kind}, which is usually a disk of this machine alone; nodes would not see it", fix
        )
    else:
        yield ok(f"{place} is on {kind or 'a file system of unknown kind'}")


def measure(place: Path, tries: int = TRIES) -> Measured:
    """Try and time what atomic writing, locks and checkpoints need. Raises OSError for what does not work."""
    renames, syncs = [], []
    with tempfile.TemporaryDirectory(prefix=".mtkv-doctor-", dir=place) as scratch:
        for number in range(tries):
            path, target = Path(scratch) / f"{number}.tmp", Path(scratch) / "target"
            start = time.perf_counter()
            path.write_bytes(b"x" * 4096)
            path.stat()
            path.replace(target)
            renames.append(time.perf_counter() - start)
            with target.open("ab") as file:
                start = time.perf_counter()
                os.fsync(file.fileno())
                syncs.append(time.perf_counter() - start)
        _one_winner(Path(scratch))
        before = time.time()
        target.write_bytes(b"y")
        skew = target.stat().st_mtime - (before + time.time()) / 2
    return Measured(median(renames), median(syncs), skew)


def file_system(place: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that a folder is on (ext4, nfs, …); empty where it is not known."""
    try:
        lines = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ""
    above = [(len(fields[1]), fields[2]) for fields in lines if len(fields) > 2 and place.is_relative_to(fields[1])]
    return max(above, default=(0, ""))[1]


def _one_winner(scratch: Path) -> None:
    """Raise OSError unless hard links are exclusive, which the lock of a checkpoint relies on."""
    first, second = scratch / "first", scratch / "second"
    first.touch()
    os.link(first, second)
    try:
        os.link(first, second)
    except FileExistsError:
        return
    raise OSError(0, "two processes could take the same lock: hard links are not exclusive here")


def _judged(name: str, found: Measured) -> Iterator[Finding]:
    speed = f"create, stat and rename {1000 * found.rename:.1f} ms, fsync {1000 * found.sync:.1f} ms"
    if found.rename > SLOW or found.sync > SLOW_SYNC:
        fix = "use faster storage, or fewer and larger files (teachers.shards, evaluation.jobs: per_run)"
        yield warning(f"{name}/: slow, {speed}", fix)
    else:
        yield ok(f"{name}/: {speed}")
    fix = "set the clocks by NTP (chrony) on both machines"
    if abs(found.skew) > INTERVAL * MISSED:
        told = "new files look old to Snakemake, and living writers dead to `mtkv status`"
        yield error(f"{name}/: the file server's clock is {found.skew:+.0f} s off: {told}", fix)
    elif abs(found.skew) > SKEW:
        yield warning(f"{name}/: the file server's clock is {found.skew:+.1f} s off", fix)


def snakemake(context: DoctorContext) -> Iterator[Finding]:
    """No Snakemake is at work in this folder, and no killed one left its lock."""
    internal = context.folder / ".snakemake"
    notes = read_logs(internal / "log", latest=1)
    state = alive(internal, notes.host)
    if state == "killed":
        fix = "snakemake --unlock (with the study's --configfile), then start it again"
        yield error("a Snakemake was killed here and left its lock", fix)
    elif state == "elsewhere":
        fix = "look there whether it runs; if it does not: snakemake --unlock"
        yield warning(f"a lock of a Snakemake on {notes.host}", fix)
    elif state == "unlocked":
        message = "a Snakemake is at work in this folder, and another one that ended here took its lock away"
        yield warning(message, "start none until it has ended (`mtkv status`): nothing would refuse a second one")
    elif state == "here":
        fix = "`mtkv status` shows how far it is; a second one waits or is refused"
        yield note("a Snakemake is at work in this folder now", fix)
    else:
        yield ok("no lock in this folder")


GROUP = "/sys/fs/cgroup/memory.max"
STAGES = ("data", "teachers", "maps", "train", "predict")
FEW_FILES = 100_000  # free inodes


def plan(context: DoctorContext) -> Iterator[Finding]:
    """The problems that `mtkv plan` finds: disk, time limits, partitions."""
    from mtkv.ops.plan.plan import make_plan
    from mtkv.ops.snakemake_dag import PlanError

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = make_plan(context.study, context.configfiles, profile=context.profile, folder=context.folder)
    except PlanError as refused:
        yield error(f"Snakemake cannot plan the study: {refused}", "mend what it names; `mtkv plan` shows more")
        return
    for problem in found.problems:
        said, _, fix = problem.rpartition("; ")
        yield error(said or problem, fix if said else "see `mtkv plan`")
    if found.copied:
        said, _, fix = found.copied.rpartition("; ")
        yield warning(said, fix)
    unknown = [note for note in found.notes if note.startswith("not counted")]
    free = shutil.disk_usage(existing(context.folder / "results")).free
    counted = f", without {len(unknown)} models that are not fetched yet" if unknown else ""
    jobs = f"{len(found.running)} of {len(found.jobs)} jobs to run"
    told = f"{jobs}; {amount(found.written)} more on disk{counted}, {amount(free)} free"
    yield note(told, "see again after `snakemake assets`") if unknown else ok(told)


def disk(context: DoctorContext) -> Iterator[Finding]:
    """Every folder that is written to has room, in bytes and in files."""
    seen: set[int] = set()
    for name in ("results", "checkpoints", "assets"):
        place = existing(context.folder / name)
        if os.stat(place).st_dev in seen:
            continue
        seen.add(os.stat(place).st_dev)
        status = os.statvfs(place)
        free = status.f_bavail * status.f_frsize
        if free < 1e9:
            fix = "free some space, or put the folder on a larger disk (a symbolic link will do)"
            yield error(f"{name}/: {amount(free)} free", fix)
        elif status.f_files and status.f_favail < FEW_FILES:
            fix = "remove files that are not needed; ask for a larger quota"
            yield warning(f"{name}/: room for {status.f_favail:,} more files only", fix)
        else:
            yield ok(f"{name}/: {amount(free)} free")


def memory(context: DoctorContext) -> Iterator[Finding]:
    """Memory and cores of this machine against the largest job; on a cluster the partitions are checked instead."""
    if context.profile.remote:
        yield ok("jobs get their memory on the cluster's nodes")
        return
    here = memory_mb()
    asked = {stage: getattr(context.study.resources, stage) for stage in STAGES}
    stage = max(asked, key=lambda name: asked[name].mem_mb)
    most, cores = asked[stage].mem_mb, os.cpu_count() or 1
    if most > here:
        message = f"a job of {stage} asks for {most:,} MB, this machine has {here:,.0f} MB"
        yield warning(message, f"lower resources.{stage}.mem_mb if it needs less, or run where there is more memory")
    else:
        yield ok(f"{here:,.0f} MB; the largest job ({stage}) asks for {most:,} MB; {cores} cores")
    if (threads := max(need.threads for need in asked.values())) > cores:
        yield note(f"a job asks for {threads} threads, here are {cores} cores: Snakemake gives it those")


def memory_mb() -> float:
    """MB of this machine's memory, or the smaller limit of a container or SLURM job."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    try:
        text = Path(GROUP).read_text(encoding="ascii").strip()
        return min(whole, int(text) / 1e6) if text.isdigit() else whole
    except OSError:
        return whole
