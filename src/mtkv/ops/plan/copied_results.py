"""A finished study that was copied or touched: Snakemake would run it again only because file times changed.

What each job read is in its card (a digest of each input, the git revision), so contents can be compared instead.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mtkv.ops.cost_model.past_runs import card_of, config_digest, size_on_disk
from mtkv.ops.plan.limits import amount
from mtkv.ops.planned_jobs import Cause, PlannedJob
from mtkv.ops.rerun_reasons import CODE, git
from mtkv.provenance.digest import path_digest

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
