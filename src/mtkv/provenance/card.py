"""The card beside every output: what made it, from what, on which machine, at what cost.

`Card` is used by the workflow scripts around one call of a stage function; it measures wall time and peak memory, and is
written atomically only when the stage ended well.
"""

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from mtkv.provenance.code_digest import PACKAGE_FOLDER
from mtkv.provenance.digest import digest_of, path_digest
from mtkv.provenance.files import write_json

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "lm_eval",
    "snakemake",
    "numpy",
    "scipy",
    "statsmodels",
    "plotly",
)


class Card:
    """Context manager that writes one card file.

    `result` is a JSON-able dict the stage returned; `tokens` and `seed` in it are lifted to the card's top level.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        study: str,
        stage: str,
        wildcards: dict[str, str],
        inputs: list[str],
        config_digest: str,
        code_digest: str,
    ) -> None:
        self.path = Path(path)
        self.result: dict[str, Any] = {}
        self._inputs = inputs
        self._facts = {
            "study": study,
            "stage": stage,
            "wildcards": wildcards,
            "config_digest": config_digest,
            "code_digest": code_digest,
        }

    @classmethod
    def for_job(cls, job: Any, stage: str, *, folders: bool = True) -> Self:
        """The card of a Snakemake job; from here on everything the process prints goes to the job's log file.

        `job` is the `snakemake` object of a script. Its `params` but `code` and `study` are the config that entered the job.
        `folders`: whether input folders are read for their digests too; not where the job itself does not read them.
        """
        log = open(job.log[0], "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        params = dict(job.params.items())
        code, study = params.pop("code"), params.pop("study")
        return cls(
            job.output.card,
            study=study,
            stage=stage,
            wildcards=dict(job.wildcards.items()),
            inputs=[path for path in job.input if folders or not Path(path).is_dir()],
            config_digest=digest_of(params),
            code_digest=code,
        )

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        self._created = datetime.now(UTC).isoformat(timespec="seconds")
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            return
        write_json(
            self.path,
            self._facts
            | {
                "inputs": {path: path_digest(Path(path)) for path in self._inputs if Path(path).exists()},
                "git": git_state(),
                "packages": package_versions(),
                "hardware": hardware(),
                "created": self._created,
                "wall_seconds": round(time.perf_counter() - self._start, 3),
                "peak_memory_mb": round(_peak_memory_mb(), 1),
                "peak_gpu_memory_mb": _peak_gpu_memory_mb(),
                "tokens": self.result.get("tokens"),
                "seed": self.result.get("seed"),
                "result": self.result,
            },
        )


def git_state() -> dict[str, Any]:
    """Revision of the checkout the package runs from, and whether tracked files differ from it; nulls outside a checkout."""
    revision = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": None if status is None else bool(status)}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute results, of those installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """CPU cores usable by this process, memory in GB, and the GPU's name when torch is loaded and sees one."""
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {"machine": platform.machine(), "cores": os.cpu_count(), "memory_gb": round(memory, 1), "gpu": gpu}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE_FOLDER), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3  # bytes on macOS, kilobytes on Linux


def _peak_gpu_memory_mb() -> float | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return round(torch.cuda.max_memory_allocated() / 1e6, 1)
