"""Why a job runs: which of its params, inputs, scripts and modules changed, from Snakemake's DAG, its records, and git.

Snakemake stops looking for reasons at the first job of a chain that must run and blames that one for all after it; here each job is
asked for its own (`causes_of`), so that a plan names all that changed.
- Params: Snakemake records their texts (repr) without their names; they are read back and matched to today's most similar params.
- Code (`code_change`): the modules at the git revision in the run's card against the files of now. Only what enters the code digest
  counts: changes of comments and docstrings do not, nor do modules that the stage does not import.
"""

import ast
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtkv.ops.planned_jobs import Cause, Change, Record
from mtkv.provenance import code_digest as code
from mtkv.provenance.code_digest import (
    Covered,
    locked,
    module_file,
    source_digest,
    stage_modules,
    stage_packages,
)
from mtkv.provenance.digest import file_digest

CODE = "code"
DIGEST = re.compile(r"[0-9a-f]{16}")


def read_back(text: str) -> Any:
    """The value behind a repr of plain Python values; the text itself where it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def named(recorded: Iterable[str], today: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded params (reprs) under the names of today's; names without a counterpart are left out."""
    left = Counter(recorded)
    found: dict[str, Any] = {}
    for name, value in today.items():
        if left[text := repr(value)] > 0:
            left[text] -= 1
            found[name] = value
    old = [read_back(text) for text in left.elements()]
    scores = sorted(
        ((_likeness(name, value, candidate), name, place) for name, value in today.items() if name not in found
         for place, candidate in enumerate(old)),
        key=lambda entry: -entry[0],
    )  # fmt: skip
    used: set[int] = set()
    for score, name, place in scores:
        if score > 0 and name not in found and place not in used:
            found[name] = old[place]
            used.add(place)
    return found


def changes(old: Any, new: Any, path: str) -> Iterator[Change]:
    """Every leaf in which two nested values differ, with its dotted path below `path`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from changes(old.get(key), new.get(key), f"{path}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and any(_nested(x) for x in old):
        for place, pair in enumerate(zip(old, new, strict=True)):
            yield from changes(*pair, f"{path}[{place}]")
    elif repr(old) != repr(new):
        yield Change(path, old, new)


def param_changes(recorded: Iterable[str], today: Mapping[str, Any]) -> list[Change]:
    """What differs between the params of a recorded run (reprs) and today's, `code` included."""
    before = named(recorded, today)
    return [change for name, value in today.items() for change in changes(before.get(name), value, name)]


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping | list)


def _likeness(name: str, value: Any, candidate: Any) -> float:
    """How similar two values are, from 0 (of another kind) to 2 (equal leaf by leaf). A code digest matches only another one."""
    is_digest = isinstance(candidate, str) and DIGEST.fullmatch(candidate) is not None
    if (name == CODE) != is_digest:
        return 0.0
    if isinstance(value, Mapping) and isinstance(candidate, Mapping):
        keys = {*value, *candidate}
        common = sum(key in value and key in candidate for key in keys)
        equal = sum(repr(value.get(key)) == repr(candidate.get(key)) for key in keys)
        return (common + equal) / len(keys) if keys else 2.0
    if isinstance(value, bool) or isinstance(candidate, bool):
        return float(type(value) is type(candidate))
    if isinstance(value, int | float) and isinstance(candidate, int | float):
        return 1.0
    if value is None or candidate is None:
        return 0.1
    return float(type(value) is type(candidate))


def causes_of(job: Any, dag: Any, remembered: Any) -> tuple[Cause, ...]:
    """All causes of a job that Snakemake means to run, at least one. `dag`, `remembered`: Snakemake's DAG and persistence."""
    reason = dag.reason(job)
    remade = set(map(str, reason.updated_input_run))
    known = remembered.has_metadata(job) and not remembered.has_outdated_metadata(job)
    found = [
        *_absent(job, remembered),
        *([Cause("incomplete", tuple(map(str, job.output)))] if reason.forced else []),
        *(_changed_params(job, remembered) if known else []),
        *_changed_script(job, reason),
        *_changed_inputs(job, reason, remembered, remade),
    ]
    if remade or not found:
        found.append(Cause("input", tuple(sorted(remade)), derived=True))
    return tuple(found)


def record_of(outputs: Iterable[Any], remembered: Any) -> Record | None:
    """Snakemake's record of the run that made these outputs (its file objects); None without times."""
    found = [record for path in outputs if (record := remembered.metadata(path)) is not None]
    times = [(record.starttime, record.endtime) for record in found if record.starttime and record.endtime]
    if not times:
        return None
    return Record(str(found[0].rule), max(end - start for start, end in times), tuple(found[0].params or ()))


def _absent(job: Any, remembered: Any) -> list[Cause]:
    gone = [path for path in job.output if not Path(path).exists()]
    if not gone:
        return []
    made = len(gone) < len(job.output) or any(remembered.metadata(path) is not None for path in gone)
    return [Cause("missing" if made else "new", tuple(map(str, gone)))]


def _changed_params(job: Any, remembered: Any) -> list[Cause]:
    if not remembered.params_changed(job):
        return []
    recorded = next(params for path in job.output if (params := remembered.params(path)) is not None)
    found = param_changes(recorded, dict(job.params.items()))
    config = tuple(change for change in found if change.path != CODE)
    code = tuple(change for change in found if change.path == CODE)
    return [*([Cause("config", changes=config)] if config else []), *([Cause("code", changes=code)] if code else [])]


def _changed_script(job: Any, reason: Any) -> list[Cause]:
    return [Cause("code", (str(job.rule.script),))] if reason.code_changed else []


def _newer(job: Any, remembered: Any) -> Iterator[str]:
    """Input files younger than the oldest output, unless their content is the recorded one; as Snakemake judges it."""
    made = [Path(path).stat().st_mtime for path in job.output if Path(path).is_file()]
    for path in map(Path, job.input if made else ()):
        if path.is_file() and path.stat().st_mtime > min(made):
            small = path.stat().st_size <= remembered.max_checksum_file_size
            same = small and remembered.input_checksums(job, str(path)) == {f"sha256:{file_digest(path)}"}
            if not same:
                yield str(path)


def _changed_inputs(job: Any, reason: Any, remembered: Any, remade: set[str]) -> list[Cause]:
    causes = []
    touched = sorted(({str(path) for path in reason.updated_input} | set(_newer(job, remembered))) - remade)
    if touched:
        causes.append(Cause("input", tuple(touched)))
    if any(remembered.input_changed(job)):
        before = next(set(files) for path in job.output if (files := remembered.input(path)) is not None)
        today = set(map(str, job.input))
        added = [Change(path, None, "input") for path in sorted(today - before)]
        removed = [Change(path, "input", None) for path in sorted(before - today)]
        causes.append(Cause("input", changes=(*added, *removed)))
    return causes


LOCK = "../../requirements.lock"
ReadOld = Callable[[str], bytes | None]


@dataclass(frozen=True)
class CodeChange:
    """Since `revision`: `modules` with another syntax tree, modules `added`, other `files` of the digest that changed, `pins` likewise.

    `note` says why the lists may be incomplete; empty when they are complete.
    """

    revision: str | None
    modules: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    pins: tuple[Change, ...] = ()
    note: str = ""


def code_change(stage: Covered, revision: str | None, dirty: bool | None, package: Path | None = None) -> CodeChange:
    """What of a stage's code differs between a git revision and now. `dirty`: whether that run's tree had uncommitted changes."""
    package = package or code.PACKAGE_FOLDER
    if revision is None:
        return CodeChange(None, note="the run's card names no git revision")
    if git(package, "cat-file", "-e", f"{revision}^{{commit}}") is None:
        return CodeChange(revision, note="that revision is not in this checkout")

    def old(path: str) -> bytes | None:
        return git(package, "show", f"{revision}:./{path}")

    modules, added = _modules(stage, package, old)
    files = tuple(
        path.relative_to(package).as_posix()
        for pattern in stage.data
        for path in sorted(package.glob(pattern))
        if old(path.relative_to(package).as_posix()) != path.read_bytes()
    )
    note = "that run's tree had uncommitted changes, which are not known" if dirty else ""
    return CodeChange(revision, modules, added, files, _pins(stage, package, old), note)


def _modules(stage: Covered, package: Path, old: ReadOld) -> tuple[tuple[str, ...], tuple[str, ...]]:
    changed, added = [], []
    for name in stage_modules(*stage.modules):
        file = module_file(name)
        if file is None:
            continue
        path = package / os.path.relpath(file, code.PACKAGE_FOLDER)  # one's own lies elsewhere
        before = old(Path(os.path.relpath(path, package)).as_posix())
        if before is None:
            added.append(name)
        elif before != (now := path.read_bytes()) and source_digest(before) != source_digest(now):
            changed.append(name)
    return tuple(changed), tuple(added)


def _pins(stage: Covered, package: Path, old: ReadOld) -> tuple[Change, ...]:
    before, path = old(LOCK), package / LOCK
    if before is None or not path.is_file():
        return ()
    then, now = locked(before.decode()), locked(path.read_text(encoding="utf-8"))
    used = sorted(stage_packages(*stage.modules))
    return tuple(Change(name, then.get(name), now.get(name)) for name in used if then.get(name) != now.get(name))


def git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints in `folder`; None where it fails or is not installed."""
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, check=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
