"""Why jobs run: for one target the jobs with causes of their own, what changed for each, and the chain from each down to it (`explain`).

A finished study that was copied or touched would run again only because file times changed (`copied`). What each job read is in its
card (a digest of each input, the git revision), so contents can be compared instead.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mtkv.ops.cost_model.past_runs import amount, card_of, config_digest, size_on_disk
from mtkv.ops.planned_jobs import Cause, PlannedJob
from mtkv.ops.rerun_reasons import CODE, CodeChange, code_change, git
from mtkv.provenance.code_digest import covered
from mtkv.provenance.digest import path_digest

NOT_HASHED = 100_000_000  # bytes; larger inputs are named without comparing digests


@dataclass(frozen=True)
class Explained:
    """A job that runs for causes of its own: sentences about them, and the chain of jobs from it to the target, both included."""

    job: PlannedJob
    sentences: tuple[str, ...]
    chain: tuple[PlannedJob, ...]


def explain(jobs: Sequence[PlannedJob], target: str, folder: Path = Path()) -> list[Explained]:
    """The causes behind `target`, earlier jobs first; empty when nothing has to run.

    `jobs`: of a dry run for the target. A target that no job writes (rule all) stands for the jobs whose outputs no other job reads.
    """
    read = {number for job in jobs for number in job.above}
    below = _below(
        jobs, [job for job in jobs if target in job.outputs] or [job for job in jobs if job.number not in read]
    )
    return [
        Explained(job, tuple(sentence for cause in own for sentence in _sentences(cause, job, folder)), _chain(job, below))
        for job in jobs
        if job.number in below and job.runs and (own := [cause for cause in job.causes if not cause.derived])
    ]  # fmt: skip


def _below(jobs: Sequence[PlannedJob], last: Sequence[PlannedJob]) -> dict[int, PlannedJob | None]:
    """Job number → the next job on a shortest way to one of `last` (None for these), for every job that they depend on."""
    known = {job.number: job for job in jobs}
    found: dict[int, PlannedJob | None] = {job.number: None for job in last}
    queue = list(last)
    while queue:
        job = queue.pop(0)
        for number in job.above:
            if number in known and number not in found:
                found[number] = job
                queue.append(known[number])
    return found


def _chain(job: PlannedJob, below: Mapping[int, PlannedJob | None]) -> tuple[PlannedJob, ...]:
    chain, following = [job], below[job.number]
    while following is not None:
        chain.append(following)
        following = below[following.number]
    return tuple(chain)


def _sentences(cause: Cause, job: PlannedJob, folder: Path) -> list[str]:
    if cause.kind == "config":
        return [f"config: {change.path}: {short(change.old)} → {short(change.new)}" for change in cause.changes]
    if cause.kind == "code":
        return _of_code(cause, job, folder)
    if cause.kind == "input":
        return [_of_input(path, job, folder) for path in cause.files] + [
            f"input: {change.path} is {'read now' if change.old is None else 'no longer read'}" for change in cause.changes
        ]  # fmt: skip
    said = {"new": "was never made", "missing": "was made once and is gone", "incomplete": "was left by a killed job"}
    return [f"{cause.kind}: {path} {said[cause.kind]}" for path in cause.files]


def _of_code(cause: Cause, job: PlannedJob, folder: Path) -> list[str]:
    if cause.files:
        return [f"code: the script {path} is newer than the outputs" for path in cause.files]
    card = card_of(folder, job.card) or {}
    change = next(change for change in cause.changes if change.path == CODE)
    stage = covered(str(change.new))
    git = card.get("git") or {}
    if stage is None:
        return [f"code: digest {change.old} → {change.new}"]
    found = code_change(stage, git.get("revision"), git.get("dirty"))
    return [f"code: digest {change.old} → {change.new}", *_of_modules(found)]


def _of_modules(change: CodeChange) -> list[str]:
    since = f"since {change.revision[:8]}" if change.revision else ""
    told = [f"code: {name} differs {since}" for name in (*change.modules, *change.files)]
    told += [f"code: {name} is new {since}" for name in change.added]
    told += [f"code: package {pin.path} in requirements.lock: {pin.old} → {pin.new}" for pin in change.pins]
    if not told and change.revision and not change.note:
        told.append(f"code: no module of the stage differs {since}; the run used another package or lock file")
    return told + ([f"code: {change.note}"] if change.note else [])


def _of_input(path: str, job: PlannedJob, folder: Path) -> str:
    before = (card_of(folder, job.card) or {}).get("inputs", {}).get(path)
    file = folder / path
    if before is None or not file.exists() or size_on_disk(file) > NOT_HASHED:
        return f"input: {path} is newer than the outputs"
    now = path_digest(file)
    if now == before:
        return f"input: {path} is newer than the outputs, with the same content"
    return f"input: {path} changed: sha256 {before[:12]} → {now[:12]}"


def short(value: Any, length: int = 120) -> str:
    """A value as text, cut where it is long."""
    text = "absent" if value is None else repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


MOST = 50e9  # bytes of inputs; beyond that nothing is read and compared
RULES = Path("workflow/rules")  # paths of scripts are relative to this


def copied(
    jobs: Sequence[PlannedJob], folder: Path, targets: Sequence[str] = (), configfiles: Sequence[Path] = ()
) -> str:
    """Advice with the command that marks all outputs as up to date, where `jobs` run for file times alone; else empty.

    It names what could not be compared: inputs that no card lists, jobs without card or record, more than `MOST` bytes.
    """
    unknown = times_only(jobs, folder)
    if unknown is None:
        return ""
    overlays = ["--configfile", *map(str, configfiles)] if configfiles else []
    command = " ".join(["snakemake --touch --cores 1", *(targets or ["all"]), *overlays])
    if not unknown:
        return f"only the times of files differ, their contents are those of the cards, as after a copy; do not run, `{command}`"
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    return (
        f"only the times of files say that anything has to run; not compared: {', '.join(unknown[:3])}{more}; "
        f"if this is a copy, or was touched: `{command}`"
    )


def times_only(jobs: Sequence[PlannedJob], folder: Path) -> list[str] | None:
    """What could not be compared, if no content differs and only file times make jobs run; None in any other case."""
    running = [job for job in jobs if job.runs]
    if not running or not all(_of_time(cause) for job in running for cause in job.causes):
        return None
    size = sum(size_on_disk(folder / path) for path in {path for job in running for path in job.inputs})
    if size > MOST:
        return [f"{amount(size)} of inputs"]
    cards = {job.number: card_of(folder, job.card) or {} for job in jobs}
    now = cache(lambda path: path_digest(folder / path))
    unknown: dict[str, None] = {}
    for job in running:
        own = cards[job.number]
        others = [own] if own else list(cards.values())
        checks = [_settings(job, own), *(_script(path, others, folder) for path in _scripts(job))]
        checks += [(path, _same(now(path), _recorded(path, own, cards.values()))) for path in job.inputs]
        if any(same is False for _, same in checks):
            return None
        unknown |= dict.fromkeys(name for name, same in checks if same is None)
    return list(unknown)


def _of_time(cause: Cause) -> bool:
    """Whether the cause is only that a file is newer than the outputs, or will be because an earlier job runs."""
    return cause.kind in ("input", "code") and not cause.changes


def _scripts(job: PlannedJob) -> list[str]:
    return [path for cause in job.causes if cause.kind == "code" for path in cause.files]


def _settings(job: PlannedJob, card: Mapping[str, Any]) -> tuple[str, bool | None]:
    """(what, unchanged?) of a job's params: Snakemake compared them with its record; without a record the card's digests are."""
    if job.record is not None or not card:
        return f"the settings of {job.label}", None if job.record is None else True
    then = card["config_digest"], card["code_digest"]
    return f"the settings of {job.label}", then == (config_digest(job.params), job.params[CODE])


def _recorded(path: str, own: Mapping[str, Any], cards: Iterable[Mapping[str, Any]]) -> set[str]:
    """The digests an input had, from the job's own card; where that does not list it, from any card."""
    named = [card["inputs"] for card in (own, *cards) if path in card.get("inputs", {})]
    return {inputs[path] for inputs in (named[:1] if path in own.get("inputs", {}) else named)}


def _same(now: object, then: set[Any]) -> bool | None:
    """Whether `now` is what it was; None where that is unknown or ambiguous."""
    return now in then if len(then) == 1 else None


def _script(script: str, cards: Iterable[Mapping[str, Any]], folder: Path) -> tuple[str, bool | None]:
    """(path, unchanged?) of a script since the cards' git revisions; None where their trees had uncommitted changes."""
    path = (folder / RULES / script).resolve().relative_to(folder.resolve())
    states = [card.get("git") or {} for card in cards if card]
    revisions = {None if state.get("dirty") is not False else state["revision"] for state in states}
    then = {revision and git(folder, "show", f"{revision}:./{path}") for revision in revisions}
    return str(path), None if None in then or not then else then == {(folder / path).read_bytes()}
