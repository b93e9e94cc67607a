"""The folder of a stage's saved states, `checkpoints/<digest>/`: a rule never declares it, so Snakemake leaves it alone.

manifest.json          identity (what must be the same to resume), run (whose it is, for people), created, versions
lock.json              the one writer (`mtkv.checkpointing.lock`)
step-00000123/         one saved state; complete when its `complete.json`, written last, lists all its files with matching size and sha256
progress.json          how far it is, for `mtkv status`
resumes.json           at which step numbers it was resumed
finished.json          the outputs are written
*.jsonl                files that a stage appends to (the journal of predictions)
job.log                the log of earlier attempts (`carry_on`), looked for after a failure: Snakemake removes a job's log before it
                       starts the job again, and a second hard link to the file, among the job's checkpoints, survives that
"""

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from mtkv.checkpointing.identity import check_same, job_identity, job_run
from mtkv.checkpointing.lock import WriterLock
from mtkv.provenance.card import package_versions
from mtkv.provenance.digest import canonical, digest_of, file_digest
from mtkv.provenance.files import atomic_path, read_json, write_json

NAME = re.compile(r"step-(\d{8,})")
COMPLETE = "complete.json"
OLD = 3600.0  # seconds after which a temporary lock file counts as abandoned


def steps(folder: Path) -> dict[int, Path]:
    """`{number: folder}` of the steps in a checkpoint's folder, ascending, complete or not."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def is_complete(step: Path) -> bool:
    """Whether the step has exactly the files that were written, unchanged. Reads all of them for their sha256."""
    try:
        listed = read_json(step / COMPLETE)["files"]
        there = {str(path.relative_to(step)) for path in _files(step)}
        return there == set(listed) and all(
            (step / name).stat().st_size == facts["size"] and file_digest(step / name) == facts["sha256"]
            for name, facts in listed.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_step(
    folder: Path, number: int, write: Callable[[Path], object], needed: int | None, check: Callable[[], None]
) -> Path:
    """Call `write(temporary folder)`, flush all files to disk, then rename the folder to `step-<number>`, which is returned.

    `check` is called just before the rename and may raise to prevent it. Raises DiskFullError, and leaves nothing, when there is no
    room (for `needed` bytes, where they are known).
    """
    path = folder / f"step-{number:08d}"
    with atomic_path(path, needed) as temporary:
        temporary.mkdir()
        write(temporary)
        files = {
            str(file.relative_to(temporary)): {"size": file.stat().st_size, "sha256": file_digest(file)}
            for file in _files(temporary)
        }
        for file in files:
            _sync(temporary / file)
        write_json(temporary / COMPLETE, {"files": files})
        _sync(temporary / COMPLETE)
        for inner in [*(path for path in temporary.rglob("*") if path.is_dir()), temporary]:
            _sync(inner)
        check()
        replaced = folder / f".{path.name}.replaced"
        if path.exists():  # a death between the two renames leaves the old one where `remove_leftovers` finds it
            path.rename(replaced)
    _sync(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed writers and restore a step they were replacing. Only for the holder of the folder's lock."""
    for old in folder.glob(".step-*.replaced"):
        step = folder / old.name.removeprefix(".").removesuffix(".replaced")
        if step.exists():
            shutil.rmtree(old)
        else:
            old.rename(step)
    for path in folder.glob(".*.tmp"):
        if path.name.startswith(".step-"):
            shutil.rmtree(path, ignore_errors=True)
        elif not path.name.startswith(".lock.json") or time.time() - path.stat().st_mtime > OLD:
            path.unlink(missing_ok=True)  # others may be about to ask for the lock


def _files(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file() and path != step / COMPLETE)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


ROOT = Path("checkpoints")
INTERVAL = 30.0  # seconds between two saves, unless a stage sets its own
WAITING = ".lock.json."  # how files of processes that wait for the lock begin
SLURM_PATIENCE = 90.0  # seconds: a job that met its time limit may live on for a while beside its retry


def checkpoint_folder(root: Path, identity: Mapping[str, Any]) -> Path:
    """The folder of the checkpoints of the job with this identity, below `root`."""
    return root / digest_of(identity)


def newest_step(folder: Path) -> Path | None:
    """The newest complete step in a checkpoint's folder; half-written and damaged ones are passed over."""
    return next((path for path in reversed(steps(folder).values()) if is_complete(path)), None)


class Checkpoint:
    """Context manager: inside, this process is the only one that writes the checkpoints of `identity`.

    Entering raises LockedError while another process writes there, ManifestError when the folder holds another job's state. `identity`
    and `run` (see `mtkv.checkpointing.identity`) are JSON-able; `keep` is how many of the newest steps stay (None: all). `patience`:
    seconds to wait for a living writer to leave; None: 0, or `SLURM_PATIENCE` inside a SLURM job. A stage that `finish`ed begins anew.
    """

    def __init__(
        self,
        root: Path,
        identity: Mapping[str, Any],
        run: Mapping[str, Any],
        *,
        keep: int | None = 2,
        patience: float | None = None,
    ) -> None:
        self.folder = checkpoint_folder(Path(root), identity)
        self._identity, self._run, self.keep = json.loads(canonical(identity)), run, keep
        if patience is None:
            patience = SLURM_PATIENCE if "SLURM_JOB_ID" in os.environ else 0.0
        self._lock = WriterLock(self.folder / "lock.json", patience=patience)
        self._due, self._first = -math.inf, 0.0
        self._progress: dict[str, Any] = {}

    @classmethod
    def for_job(cls, job: Any, stage: str, *, root: Path = ROOT, keep: int | None = 2) -> Self:
        """The checkpoints of a Snakemake job (the `snakemake` object of a script)."""
        return cls(root, job_identity(job, stage), job_run(job, stage), keep=keep)

    def __enter__(self) -> Self:
        self._lock.__enter__()
        try:
            self._open()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)

    @property
    def resumed_at(self) -> list[int]:
        """Step numbers at which the stage was resumed since it began; empty when it was never interrupted."""
        path = self.folder / "resumes.json"
        return list(read_json(path)) if path.exists() else []

    @property
    def finished(self) -> bool:
        """Whether `finish` was called since the stage last began."""
        return (self.folder / "finished.json").exists()

    def check(self) -> None:
        """Raises LockedError when another process took the lock over: stop writing."""
        self._lock.check()

    def newest(self) -> Path | None:
        """The newest complete step; half-written and damaged ones are passed over for the one before."""
        return newest_step(self.folder)

    def intact(self) -> dict[int, Path]:
        """`{number: folder}` of every complete step, for stages whose result is made of all steps and not just the newest."""
        return {number: path for number, path in steps(self.folder).items() if is_complete(path)}

    def note_resume(self, number: int) -> None:
        """Record in resumes.json that the stage goes on from step `number`."""
        write_json(self.folder / "resumes.json", [*self.resumed_at, int(number)])

    def save(self, number: int, write: Callable[[Path], object], needed: int | None = None) -> Path:
        """Save step `number`, whose files `write(folder)` writes, and return its folder.

        Then only the newest `keep` steps up to `number` remain; later ones stem from an attempt that was not resumed and are removed too
        (`keep` None removes nothing). Raises DiskFullError when there is no room (for `needed` bytes, where known), LockedError when the
        lock was taken over; steps saved before stay.
        """
        self.check()
        path = write_step(self.folder, number, write, needed, self.check)
        if self.keep is not None:
            found = steps(self.folder)
            kept = [other for other in found if other <= number][-self.keep :]
            for other in found.keys() - set(kept):
                shutil.rmtree(found[other])
        return path

    def progress(self, done: int, total: int, unit: str, **facts: Any) -> None:
        """Write `done` of `total` (in `unit`, say "rows") and `facts` to progress.json; at most once a second, and always at the end."""
        now = time.monotonic()
        if now < self._due and done < total:
            return
        self._due = now + 1.0
        if not self._progress:
            self._progress = {"started": _now(), "done_at_start": done}
        known = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in facts.items()
        }
        line = self._progress | {"done": done, "total": total, "unit": unit, "updated": _now()}
        write_json(self.folder / "progress.json", line | known)

    def finish(self, keep: int = 0) -> None:
        """Mark the stage's outputs as written, and remove all but the newest `keep` steps and the JSON files."""
        self.check()
        write_json(self.folder / "finished.json", {"finished": _now(), "resumed_at": self.resumed_at})
        kept = list(steps(self.folder).values())[-keep:] if keep else []
        for path in set(self.folder.iterdir()) - set(kept):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix != ".json" and not path.name.startswith(WAITING):
                path.unlink()

    def _open(self) -> None:
        remove_leftovers(self.folder)
        path = self.folder / "manifest.json"
        if path.exists():
            check_same(path, self._identity)
        else:
            facts = {"identity": self._identity, "run": self._run, "created": _now(), "versions": package_versions()}
            write_json(path, facts)
        if self.finished:
            for name in ("finished.json", "resumes.json", "progress.json"):
                (self.folder / name).unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def carry_on(log: Path, kept: Path) -> None:
    """Copy the earlier log at `kept` to this process's standard output, which goes to `log`, and link `kept` to `log` for the next start.

    On a file system without hard links the log holds this start only.
    """
    if kept.exists() and not os.path.samefile(kept, log):
        with open(1, "wb", closefd=False) as output:
            with open(kept, "rb") as earlier:
                shutil.copyfileobj(earlier, output)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            output.write(f"\n===== started again at {started} =====\n".encode())
    temporary = kept.with_name(f".{kept.name}.tmp")
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
        os.link(log, temporary)
        os.replace(temporary, kept)
