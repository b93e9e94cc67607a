"""What must be the same for a job to go on from its checkpoints: settings, code, inputs, versions."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtkv.provenance.card import package_versions
from mtkv.provenance.digest import canonical, path_digest
from mtkv.provenance.files import read_json

PACKAGES = ("python", "torch", "transformers", "tokenizers", "accelerate", "lm_eval", "numpy")  # results depend on them


class ManifestError(RuntimeError):
    """A checkpoint folder holds another job's state; the message names the first field that differs."""


def job_identity(job: Any, stage: str) -> dict[str, Any]:
    """Identity of a Snakemake job (the `snakemake` object of a script): stage, wildcards, config, code, input digests, versions."""
    params = json.loads(canonical(dict(job.params.items())))
    versions = package_versions()
    return {
        "stage": stage,
        "wildcards": dict(job.wildcards.items()),
        "code": params.pop("code"),
        "config": params,
        "inputs": {str(path): path_digest(Path(path)) for path in job.input},
        "versions": {name: versions[name] for name in PACKAGES if name in versions},
    }


def job_run(job: Any, stage: str) -> dict[str, Any]:
    """To which job a checkpoint belongs, for people and for `clean`: study, stage, wildcards and outputs."""
    return {
        "study": job.params.study,
        "stage": stage,
        **dict(job.wildcards.items()),
        "outputs": [str(path) for path in job.output],
    }


def check_same(manifest: Path, identity: Mapping[str, Any]) -> None:
    """Raises ManifestError when the manifest's identity is not `identity`, or cannot be read."""
    fix = f"move {manifest.parent} away or delete it: the stage then begins anew"
    try:
        there = read_json(manifest)["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{manifest}: cannot be read ({error}); {fix}") from error
    for field, old, new in _differences(there, json.loads(canonical(identity)), ""):
        raise ManifestError(
            f"{manifest}: {field} is {old!r} there and {new!r} now, so its state is not this job's; {fix}"
        )


def _differences(old: Any, new: Any, field: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from _differences(old.get(name), new.get(name), f"{field}.{name}".lstrip("."))
    elif old != new:
        yield field, old, new
