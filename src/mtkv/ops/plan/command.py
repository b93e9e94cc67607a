"""The command `mtkv plan`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mtkv.config.errors import ConfigError
from mtkv.config.study import Study, read_study
from mtkv.ops.cost_model.devices import DEFAULT_GPU, DEVICES, UTILISATION

BASE_CONFIG = Path("config/config.yaml")
Files = Annotated[list[Path], typer.Option("--configfile", help="Overlay of the default study; may be repeated.")]


def plan(
    targets: Annotated[list[str], typer.Argument(help="Files or rules; none: the whole study.")] = [],  # noqa: B006 (typer copies it)
    configfile: Files = [],  # noqa: B006
    profile: Annotated[Path | None, typer.Option(help="Snakemake profile, as profiles/slurm.")] = None,
    explain: Annotated[str | None, typer.Option(help="Why this file will be made, back to what changed.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Jobs at once (cores here); else as in the profile.")] = None,
    gpu: Annotated[str, typer.Option(help=f"GPU to assume where none is named: {', '.join(DEVICES)}.")] = DEFAULT_GPU,
    utilisation: Annotated[float, typer.Option(min=0.001, max=1, help="Share of its FLOP/s to assume.")] = UTILISATION,
    each: Annotated[bool, typer.Option("--each", help="Also a line for every job.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Also write everything as JSON.")] = None,
) -> None:
    """What will run and why, how long it takes and how large it gets, before anything is sent.

    Times are measured where a past run tells, else estimated by a stated model. Nothing is run and nothing of the study is written.
    """
    study = _study(configfile)
    if gpu not in DEVICES:
        raise typer.BadParameter(f"{gpu!r} is not one of {', '.join(DEVICES)}", param_hint="--gpu")
    from mtkv.ops.plan.explain import explain as explained
    from mtkv.ops.plan.plan import make_plan
    from mtkv.ops.plan.tables import explained_json, plan_json, print_explained, print_plan
    from mtkv.ops.snakemake_dag import PlanError
    from mtkv.ops.snakemake_profile import ProfileError, read_profile

    console = Console()
    wanted = [explain] if explain else targets
    try:
        found = make_plan(study, configfile, wanted, read_profile(profile, slots), gpu=gpu, utilisation=utilisation)
    except (PlanError, ProfileError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    written = plan_json(found)
    if explain:
        chain = explained(found.jobs, explain)
        print_explained(chain, explain, console)
        written["explained"] = explained_json(chain)
    else:
        print_plan(found, console, each)
    if json:
        from mtkv.provenance.files import write_json

        write_json(json, written)


def _study(overlays: list[Path]) -> Study:
    try:
        return read_study(BASE_CONFIG, *overlays)
    except ConfigError as error:
        raise typer.BadParameter(f"the study's config is not valid:\n{error}") from None
