"""Models that are trained runs (`source: run`): of this study, which trains them before whatever reads them, or of a finished other one.

What a run of this study needs is a graph of arms and models, and must not come back to itself.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from mtkv.config.errors import Loc, Problem, show, unknown
from mtkv.config.models import ModelConfig

if TYPE_CHECKING:
    from mtkv.config.study import Study

# Files in the folder of a trained model that cannot be loaded as an ordinary one.
LATENT_FILE = "latent.safetensors"
FUSER_FILE = "fuser.safetensors"
KINDS = {LATENT_FILE: "a latent student", FUSER_FILE: "a student that reads its teachers' KV"}


def with_own_study(tree: dict[str, Any]) -> dict[str, Any]:
    """The raw config with its own name as the `study` of those runs that name none."""

    def named(part: Any) -> Any:
        if isinstance(part, list):
            return [named(each) for each in part]
        if not isinstance(part, dict):
            return part
        own = part.get("source") == "run" and part.get("study") is None
        return {key: named(value) for key, value in part.items()} | ({"study": tree.get("study")} if own else {})

    return tree | {key: named(tree[key]) for key in ("student", "teachers") if key in tree}


def run_problems(study: "Study", arms: Iterable[str]) -> Iterator[Problem]:
    """One problem for each run that is not there and will not be, that is no ordinary model, or that needs itself.

    `arms`: all names that the config defines, also of invalid entries, which `study` lacks.
    """
    models: dict[Loc, ModelConfig] = {("student",): study.student}
    models |= {("teachers", "models", name): model for name, model in study.teachers.models.items()}
    for loc, model in models.items():
        for run in model.runs:
            if run.study == study.study:
                yield from _own_problems(study, loc, run, list(arms))
            else:
                yield from _other_problems(loc, run)
    try:
        TopologicalSorter(_needs(study, models)).prepare()
    except CycleError as cycle:
        chain: list[str] = cycle.args[1][::-1]
        loc = next(loc for loc in models if _called(loc) in chain)
        allowed = "a run of an arm that needs none of these"
        yield Problem(loc, f"a run cannot be needed by itself: {' needs '.join(chain)}; allowed: {allowed}")


def _called(loc: Loc) -> str:
    return "student" if loc == ("student",) else f"teacher {loc[-1]!r}"


def _own_problems(study: "Study", loc: Loc, run: ModelConfig, arms: list[str]) -> Iterator[Problem]:
    arm = study.arms.get(str(run.arm))
    if run.arm not in arms:
        yield Problem((*loc, "arm"), unknown(run.arm, "an arm of this study", arms))
    if arm is None:
        return
    if arm.training is None:
        yield Problem((*loc, "arm"), f"{run.arm!r} trains nothing; allowed: arms with training")
    elif arm.latent is not None or (arm.kv and arm.kv.injected):
        what = KINDS[LATENT_FILE if arm.latent else FUSER_FILE]
        yield Problem((*loc, "arm"), f"{run.arm!r} makes {what}, which nothing can be taught by; allowed: other arms")
    if run.seed not in (seeds := study.seeds_of(str(run.arm))):
        allowed = ", ".join(map(str, seeds))
        yield Problem((*loc, "seed"), f"{run.seed} is not a seed of arm {run.arm!r}; allowed: {allowed}")


def _other_problems(loc: Loc, run: ModelConfig) -> Iterator[Problem]:
    model = run.run_folder / "model"
    for path in (run.run_folder / "card.json", model / "config.json"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            command = f"snakemake --profile profiles/local --configfile <the overlay of {run.study}> -- {model}"
            message = f"arm {run.arm!r}, seed {run.seed} of study {run.study!r} is not finished: no {path}; make it: {command}"
            yield Problem((*loc, "study"), message)
            return
    if not any(model.glob("*.safetensors")):
        yield Problem((*loc, "study"), f"{show(str(model))} holds no weights (*.safetensors); make the run anew")
    for file, what in KINDS.items():
        if (model / file).exists():
            message = (
                f"{show(str(model))} holds {what} ({file}), which nothing can be taught by; allowed: runs of other arms"
            )
            yield Problem((*loc, "arm"), message)


def _needs(study: "Study", models: Mapping[Loc, ModelConfig]) -> dict[str, set[str]]:
    """Arm or model → those that must be there before it; an arm with teachers' KV has a map, which reads the student too."""
    needs = {
        _called(loc): {f"arm {run.arm!r}" for run in model.runs if run.study == study.study}
        for loc, model in models.items()
    }
    for name, arm in study.arms.items():
        taught = [] if arm.kv is None or arm.kv.own else ["student", *arm.kv.teachers]
        read = {arm.model, *taught, *(arm.logits.teachers if arm.logits else [])}
        needs[f"arm {name!r}"] = {"student" if other == "student" else f"teacher {other!r}" for other in read}
    return needs
