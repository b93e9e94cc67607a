"""What a plan must know of a Snakemake profile: where jobs run, how many at once, and the resources it adds or changes."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REMOTE_THREADS = 1_000_000  # cores of this machine do not limit jobs on other machines


class ProfileError(ValueError):
    """A profile that Snakemake cannot read; the message names it and the reason."""


@dataclass(frozen=True)
class Profile:
    """`slots`: jobs at once on a cluster, cores on this machine; `limits`: resources that all jobs share (a profile's `resources:`)."""

    executor: str = "local"
    slots: int = os.cpu_count() or 1
    limits: dict[str, int] = field(default_factory=dict)
    default_resources: Any = None
    set_resources: Any = field(default_factory=dict)
    set_threads: dict[str, int] = field(default_factory=dict)
    partitions: Path | None = None

    @property
    def remote(self) -> bool:
        """Whether jobs run on other machines."""
        return self.executor != "local"


def read_profile(folder: Path | None, slots: int | None = None) -> Profile:
    """The profile in `folder`, by Snakemake's own parser; None is this machine. `slots` overrides the profile's number.

    Raises ProfileError for a folder without a config, and for a config that needs what is not installed.
    """
    if folder is None:
        return Profile(slots=slots or os.cpu_count() or 1)
    path = _config_file(folder)
    args = _parsed(folder)
    executor = args.executor or "local"
    own = args.cores if executor == "local" else args.jobs
    cores = os.cpu_count() or 1
    number = min(own, cores) if isinstance(own, int) and executor == "local" else own
    named = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    table = next((named[key] for key in named if key.replace("_", "-") == "slurm-partition-config"), None)
    return Profile(
        executor=executor,
        slots=slots or (number if isinstance(number, int) else cores),
        limits=_shared(args),
        default_resources=args.default_resources,
        set_resources=args.set_resources or {},
        set_threads=args.set_threads or {},
        partitions=_partition_file(path, table),
    )


def _shared(args: Any) -> dict[str, int]:
    """Resources that all jobs share; those of scope "local" are shared within a group only and left out."""
    scopes = dict(args.set_resource_scopes or {})
    return {
        name: amount
        for name, value in dict(args.resources or {}).items()
        if isinstance(amount := getattr(value, "value", value), int) and scopes.get(name) != "local"
    }


def _config_file(folder: Path) -> Path:
    for pattern in ("config.v9+.yaml", "config.v8+.yaml", "config.yaml"):
        if (folder / pattern).is_file():
            return folder / pattern
    raise ProfileError(f"no profile in {folder}: there is no config.yaml; profiles of this repository lie in profiles/")


def _partition_file(config: Path, table: str | None) -> Path | None:
    if table is None:
        return None
    return next((path for path in (Path(table), config.parent / table) if path.is_file()), None)


def _parsed(folder: Path) -> Any:
    import contextlib
    import io

    from snakemake.cli import parse_args

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse_args(["--profile", str(folder.absolute()), "--workflow-profile", "none"])[1]
    except (SystemExit, Exception) as error:
        text = said.getvalue().strip().splitlines()
        detail = text[-1] if isinstance(error, SystemExit) and text else str(error)
        raise ProfileError(
            f"profile {folder}: {detail}; profiles of a cluster need its plugins (pip install 'mtkv[slurm]')"
        ) from None
