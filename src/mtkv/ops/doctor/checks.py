"""What a check takes, the study and the machine (`DoctorContext`), and what it yields: `Finding`s."""

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mtkv.config.site import Site
    from mtkv.config.study import Study
    from mtkv.ops.snakemake_dag import Profile

# ok: as it should be. note: good to know. warning: it may cost time or fail later. error: the study would stop.
Level = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of the result. `fix`: what to do; every warning and error has one."""

    level: Level
    message: str
    fix: str = ""


ok = partial(Finding, "ok")
note = partial(Finding, "note")
warning = partial(Finding, "warning")
error = partial(Finding, "error")


@dataclass(frozen=True)
class DoctorContext:
    """What is examined: a study, the folder of the workflow, and the Snakemake profile it is to run with (None: this machine alone)."""

    study: "Study"
    folder: Path = Path()
    profile_folder: Path | None = None
    configfiles: tuple[Path, ...] = field(default=())

    @cached_property
    def profile(self) -> "Profile":
        """The profile as Snakemake reads it. Raises ProfileError."""
        from mtkv.ops.snakemake_dag import read_profile

        return read_profile(self.profile_folder)

    @cached_property
    def site(self) -> "Site":
        """What `profiles/slurm/site.yaml` says of the cluster. Raises ConfigError."""
        from mtkv.config.site import read_site

        return read_site(self.folder / "profiles/slurm/site.yaml")

    @property
    def on_slurm(self) -> bool:
        """Whether jobs are sent to SLURM."""
        return self.profile.executor == "slurm"
