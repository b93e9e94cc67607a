"""Why a job runs, from Snakemake's DAG and its records.

Snakemake stops looking for reasons at the first job of a chain that must run; what is below it is said to run for that one. Here each
job is asked for its own reasons, so that a plan names all that changed.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mtkv.plan.jobs import Cause, Change, Record
from mtkv.plan.params import CODE, param_changes
from mtkv.provenance.digest import file_digest


def causes_of(job: Any, dag: Any, remembered: Any) -> tuple[Cause, ...]:
    """Every cause of a job that Snakemake means to run, never empty."""
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
    """What is remembered of the run that made these outputs (Snakemake's file objects)."""
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
    """Input files younger than the oldest output whose content is another than the recorded one, as Snakemake judges it."""
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
