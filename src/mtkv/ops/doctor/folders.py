"""The file system under results/ and checkpoints/: writing, atomic rename, exclusive creation, fsync, latency, and its clock."""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from mtkv.checkpointing.lock import INTERVAL, MISSED
from mtkv.ops.doctor.checks import DoctorContext, Finding, check

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


@check("folders")
def folders(patient: DoctorContext) -> Iterator[Finding]:
    """Each folder the study writes to works, tried in a temporary folder that is removed again."""
    for name in WRITTEN:
        place = _existing(patient.folder / name)
        try:
            found = measure(place)
        except OSError as error:
            yield Finding(
                "error",
                f"{name}/: {error.strerror or error} ({place})",
                "get the right to write there, or work in another folder",
            )
            continue
        yield from _judged(name, found)


@check("shared storage")
def shared_storage(patient: DoctorContext) -> Iterator[Finding]:
    """A cluster's nodes must see the folder of the workflow."""
    if not patient.profile.remote:
        return
    place = patient.folder.resolve()
    kind = file_system(place)
    if kind in LOCAL:
        message = f"{place} is on {kind}, which is usually a disk of this machine alone; nodes would not see it"
        yield Finding(
            "warning",
            message,
            "clone the repository into shared storage (home, project or scratch), unless this one is exported to the nodes",
        )
    else:
        yield Finding("ok", f"{place} is on {kind or 'a file system of unknown kind'}")


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
        yield Finding(
            "warning",
            f"{name}/: slow, {speed}",
            "use faster storage, or fewer and larger files (teachers.shards, evaluation.jobs: per_run)",
        )
    else:
        yield Finding("ok", f"{name}/: {speed}")
    if abs(found.skew) > INTERVAL * MISSED:
        told = "new files look old to Snakemake, and living writers dead to `mtkv status`"
        message = f"{name}/: the file server's clock is {found.skew:+.0f} s off: {told}"
        yield Finding("error", message, "set the clocks by NTP (chrony) on both machines")
    elif abs(found.skew) > SKEW:
        yield Finding(
            "warning",
            f"{name}/: the file server's clock is {found.skew:+.1f} s off",
            "set the clocks by NTP (chrony) on both machines",
        )


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
