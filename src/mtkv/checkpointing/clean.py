"""Remove the checkpoints that are of no use any more, and list what was removed and how many bytes that freed.

Always removed (`done`): checkpoints of finished jobs whose outputs exist. Removed only on request (`stale`): checkpoints of this study
that no job of it would resume now; going back to the old settings or code would resume them. Never touched: what a running process
writes (`in use`), what a job would resume (`resumable`), what belongs to another study (`other`).
"""

import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mtkv.checkpointing.lock import LockedError, WriterLock, is_stale, read_lock
from mtkv.provenance.card import package_versions
from mtkv.provenance.digest import digest_of, path_digest
from mtkv.provenance.files import read_json, write_text

NAME = re.compile(r"[0-9a-f]{16}")
Kind = Literal["done", "stale", "resumable", "other", "in use"]


class Found(NamedTuple):
    """A checkpoint folder: its kind, why it is of that kind, and its size in bytes."""

    path: Path
    kind: Kind
    reason: str
    bytes: int


def asked_digest(identity: dict[str, Any]) -> str:
    """Digest of a job's stage, wildcards, code and config: the part of its identity that is known before its inputs exist."""
    return digest_of({name: identity[name] for name in ("stage", "wildcards", "code", "config")})


def clean(
    root: Path, study: str, asked: Collection[str], log: Path | None = None, *, stale: bool = False, dry: bool = False
) -> list[Found]:
    """Remove the `done` (and with `stale` the stale) folders under `root`; print, and write to `log`, a line for every folder.

    `asked`: the `asked_digest` of every job of `study`. `dry` removes nothing. Returns what was, or with `dry` would be, removed.
    """
    wanted = ("done", "stale") if stale else ("done",)
    lines, removed = [], []
    for found in survey(root, study, asked):
        goes = found.kind in wanted and (dry or _remove(found.path))
        verb = "kept" if not goes else "would remove" if dry else "removed"
        hint = "; `snakemake clean_stale_checkpoints` removes it" if found.kind == "stale" and not stale else ""
        lines.append(f"{verb:>12}  {found.path}  {found.bytes:>15,} bytes  {found.kind}: {found.reason}{hint}")
        removed += [found] if goes else []
    total = sum(found.bytes for found in removed)
    lines.append(f"{'would remove' if dry else 'removed'} {len(removed)} of {len(lines)} folders, {total:,} bytes")
    print(*lines, sep="\n", flush=True)
    if log is not None:
        write_text(log, "\n".join(lines) + "\n")
    return removed


def survey(root: Path, study: str, asked: Collection[str]) -> Iterator[Found]:
    """Every checkpoint folder under `root` with its kind, sorted by name; nothing is changed."""
    folders = sorted(path for path in root.iterdir() if NAME.fullmatch(path.name)) if root.is_dir() else []
    for folder in folders:
        kind, reason = _kind(folder, study, asked)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        yield Found(folder, kind, reason, size)


def _kind(folder: Path, study: str, asked: Collection[str]) -> tuple[Kind, str]:
    lock = read_lock(folder / "lock.json")
    if lock is not None and not is_stale(lock):
        return "in use", f"pid {lock.get('pid')} on {lock.get('host')} writes there"
    try:
        manifest = read_json(folder / "manifest.json")
        identity, run = manifest["identity"], manifest["run"]
        whose = " ".join(str(value) for name, value in run.items() if name not in ("study", "outputs"))
        digest = asked_digest(identity)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return "stale", f"its manifest cannot be read ({error}), so nothing can be resumed from it"
    outputs = run.get("outputs", [])
    if (folder / "finished.json").exists() and outputs and all(Path(path).exists() for path in outputs):
        return "done", f"{whose} of {run.get('study')}: its outputs are written"
    if run.get("study") != study:
        return "other", f"belongs to study {run.get('study')}: {whose}"
    why = "no job of the study has these settings and this code" if digest not in asked else _changed(identity)
    return ("stale", f"{whose}: {why}") if why else ("resumable", whose)


def _changed(identity: dict[str, Any]) -> str | None:
    versions = package_versions()
    for name, old in identity.get("versions", {}).items():
        if versions.get(name) != old:
            return f"{name} was {old} and is {versions.get(name)}"
    for path, old in identity.get("inputs", {}).items():
        if Path(path).exists() and path_digest(Path(path)) != old:
            return f"its input {path} has changed"
    return None


def _remove(folder: Path) -> bool:
    """Remove a folder unless somebody writes to it; returns whether it did. Renamed first, so that half of it is never a checkpoint."""
    try:
        with WriterLock(folder / "lock.json"):
            gone = folder.with_name(f".{folder.name}.removed")
            folder.rename(gone)
    except LockedError:
        return False
    shutil.rmtree(gone)
    return True
