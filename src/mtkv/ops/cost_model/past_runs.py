"""What past runs cost: one `Sample` per job that has run, from its card and from Snakemake's record of it.

A card has the time of the stage itself; Snakemake's record also that of starting Python, and of waiting in a queue where there was
one: a record more than `LONGEST_STARTUP` above its card is not believed.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mtkv.ops.planned_jobs import PlannedJob, Record
from mtkv.ops.rerun_reasons import CODE, named
from mtkv.provenance.digest import digest_of
from mtkv.provenance.files import read_json

CARD_PATTERNS = ("data", "teachers/*", "maps/*", "arms/*/*", "predictions/*/*", "compare", "report")
STARTUP = 10.0  # assumed seconds from the start of a job to that of its stage
LONGEST_STARTUP = 120.0
NOT_CONFIG = (CODE, "study")


@dataclass(frozen=True)
class Sample:
    """One finished job. `params`: None where Snakemake has no record; `rows`: rows it read, if its card has them; `reused`: it did only
    part of the work (resumed, or copied known answers).
    """

    rule: str
    outputs: tuple[str, ...]
    wildcards: Mapping[str, str]
    digest: str
    params: Mapping[str, Any] | None
    seconds: float
    size: float
    rows: int | None
    gpu: str | None
    reused: bool


def config_digest(params: Mapping[str, Any]) -> str:
    """Digest of the config in a job's params, computed as for its card."""
    return digest_of({name: value for name, value in params.items() if name not in NOT_CONFIG})


def card_files(results: Path) -> list[str]:
    """The card files of every study below `results`."""
    return sorted(str(path) for name in CARD_PATTERNS for path in results.glob(f"*/{name}/*card.json"))


def samples_of(jobs: Iterable[PlannedJob], elsewhere: Mapping[str, Record], folder: Path) -> Iterator[Sample]:
    """A sample for each job that has run: those of the plan (`jobs`), then `elsewhere`: other studies, arms no longer in the config."""
    like: dict[str, PlannedJob] = {}
    for job in jobs:
        like.setdefault(job.rule, job)
        card = card_of(folder, job.card)
        if card is None and (job.card or job.record is None):
            continue
        yield _sample(job, job.outputs, job.wildcards, card, job.record, folder)
    for path, record in elsewhere.items():
        card = card_of(folder, path)
        if card is not None and record.rule in like:
            yield _sample(like[record.rule], (path,), card["wildcards"], card, record, folder)


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 for what is not there."""
    if path.is_dir():
        return sum(size_on_disk(Path(entry.path)) for entry in os.scandir(path))
    return path.stat().st_size if path.is_file() else 0


def amount(size: float) -> str:
    """Bytes as people read them, in powers of ten."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if abs(size) >= 10**power:
            return f"{size / 10**power:.1f} {unit}"
    return f"{size:.0f} B"


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that there is: where it will lie."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def _sample(
    job: PlannedJob,
    outputs: tuple[str, ...],
    wildcards: Mapping[str, str],
    card: dict[str, Any] | None,
    record: Record | None,
    folder: Path,
) -> Sample:
    params = named(record.params, job.params) if record else None
    result = (card or {}).get("result") or {}
    return Sample(
        rule=job.rule,
        outputs=outputs,
        wildcards=wildcards,
        digest=card["config_digest"] if card else config_digest(params or {}),
        params=params,
        seconds=_seconds(card, record),
        size=float(sum(size_on_disk(folder / path) for path in outputs)),
        rows=next((result[name] for name in ("rows_seen", "rows") if isinstance(result.get(name), int)), None),
        gpu=card["hardware"]["gpu"] if card else None,
        reused=bool(result.get("reused") or result.get("resumed_at")),
    )


def _seconds(card: dict[str, Any] | None, record: Record | None) -> float:
    if card is None:
        assert record is not None
        return record.seconds
    wall = float(card["wall_seconds"])
    believed = record is not None and 0 <= record.seconds - wall <= LONGEST_STARTUP
    return record.seconds if record and believed else wall + STARTUP


@cache
def _read(path: Path, modified: float) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"wall_seconds", "config_digest", "wildcards"} <= set(found) else None


def card_of(folder: Path, path: str | None) -> dict[str, Any] | None:
    """The card at `path` below `folder`; None where there is none, or the file is no card."""
    if path is None or not (folder / path).is_file():
        return None
    return _read(folder / path, (folder / path).stat().st_mtime)


def cards_of(jobs: Iterable[PlannedJob], folder: Path) -> list[dict[str, Any]]:
    """The existing cards of these jobs."""
    return [card for job in jobs if (card := card_of(folder, job.card)) is not None]
