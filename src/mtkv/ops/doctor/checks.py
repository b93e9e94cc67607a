"""What a check is: a function from the study and this machine to findings, registered under its name; `CHECKS` keeps their order."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mtkv.config.site import Site
    from mtkv.config.study import Study
    from mtkv.ops.snakemake_profile import Profile

# ok: as it should be. note: good to know. warning: it may cost time or fail later. error: the study would stop.
Level = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of the result. `fix`: what to do; every warning and error has one."""

    level: Level
    message: str
    fix: str = ""


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
        from mtkv.ops.snakemake_profile import read_profile

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


Check = Callable[[DoctorContext], Iterator[Finding]]
CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Register a check under the name that users see."""

    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register


def run_checks(patient: DoctorContext, names: Iterable[str]) -> Iterator[tuple[str, list[Finding]]]:
    """(name, findings) of each check in turn. A check that raises becomes a finding itself, and the others still run."""
    for name in names:
        try:
            yield name, list(CHECKS[name](patient))
        except Exception as error:
            message = f"could not be checked: {type(error).__name__}: {error}"
            yield name, [Finding("error", message, "mend what the message names; if it names nothing, report it")]
