"""Checks between sections: every arm, teacher, dataset and folder that a config names must exist."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkv.config.data import MIXTURES
from mtkv.config.errors import Loc, Problem, show, unknown
from mtkv.config.models import ModelConfig

if TYPE_CHECKING:
    from mtkv.config.study import Study

CLAIM_ARMS = ("arm", "baseline", "twin")


def reference_problems(study: "Study", arms: Iterable[str], teachers: Iterable[str]) -> list[Problem]:
    """All references of `study` that lead nowhere.

    `arms` and `teachers` are all written names: an entry that is itself invalid, and so not in `study`, still exists.
    """
    arms, teachers = list(arms), list(teachers)
    return [
        *_dataset_problems(study),
        *_model_problems(study),
        *_arm_problems(study, teachers),
        *_comparison_problems(study, arms),
        *_claim_problems(study, arms),
    ]


def _dataset_problems(study: "Study") -> Iterator[Problem]:
    known = MIXTURES[study.data.mixture]
    for index, dataset in enumerate(study.datasets):
        if dataset not in known:
            yield Problem(("datasets", index), unknown(dataset, f"a dataset of mixture {study.data.mixture}", known))


def _model_problems(study: "Study") -> Iterator[Problem]:
    models: dict[Loc, ModelConfig] = {("student",): study.student}
    models |= {("teachers", "models", teacher): model for teacher, model in study.teachers.models.items()}
    for loc, model in models.items():
        if model.source != "path":
            continue
        folder = _folder(model.name)
        if folder is None or not folder.is_dir():
            yield Problem(
                (*loc, "name"), f"{show(model.name)} is not a folder; source path needs an existing model folder"
            )
        elif not (folder / "config.json").is_file():
            yield Problem((*loc, "name"), f"{show(model.name)} is not a model folder: it has no config.json")


def _folder(name: str) -> Path | None:
    try:
        Path(name).stat()
    except (OSError, ValueError):  # too long a name, a null byte …
        return None
    return Path(name)


def _arm_problems(study: "Study", teachers: list[str]) -> Iterator[Problem]:
    if "student" in study.arms:
        yield Problem(
            ("arms", "student"), "'student' is reserved for the model that is trained; choose another arm name"
        )
    for name, arm in study.arms.items():
        if arm.model not in ("student", *teachers):
            yield Problem(
                ("arms", name, "model"), unknown(arm.model, "student or a teacher id", ["student", *teachers])
            )
        for index, teacher in enumerate(arm.kv.teachers if arm.kv else []):
            if teacher not in teachers:
                yield Problem(("arms", name, "kv", "teachers", index), unknown(teacher, "a teacher id", teachers))


def _comparison_problems(study: "Study", arms: list[str]) -> Iterator[Problem]:
    if study.comparison.baseline not in arms:
        yield Problem(("comparison", "baseline"), unknown(study.comparison.baseline, "an arm", arms))


def _claim_problems(study: "Study", arms: list[str]) -> Iterator[Problem]:
    for name, claim in study.claims.items():
        written: dict[str, Any] = claim.model_dump()
        named: list[tuple[Loc, str]] = [
            (("claims", name, field), written[field]) for field in CLAIM_ARMS if written.get(field) is not None
        ]
        named += [(("claims", name, "baselines", i), arm) for i, arm in enumerate(written.get("baselines", []))]
        yield from (Problem(loc, unknown(arm, "an arm", arms)) for loc, arm in named if arm not in arms)
        if claim.kind == "accuracy" and claim.dataset not in ("macro", *study.datasets):
            allowed = [*study.datasets, "macro"]
            yield Problem(("claims", name, "dataset"), unknown(claim.dataset, "a dataset of this study", allowed))
        if claim.kind == "datasets_improved" and claim.at_least > len(study.datasets):
            message = (
                f"{claim.at_least} is not possible; allowed: at most {len(study.datasets)}, the number of datasets"
            )
            yield Problem(("claims", name, "at_least"), message)
