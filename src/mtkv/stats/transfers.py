"""Which arms move knowledge through KV, in what way, and which arms their gain is counted against: read from the config, never typed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtkv.config.study import Study


@dataclass(frozen=True)
class Transfer:
    """An arm with KV: its kinds, the arm `without` KV that it is a gain over, and the `twin`, the same with the KV's content made wrong."""

    arm: str
    kinds: tuple[str, ...]
    without: str
    twin: str | None


def transfers(study: "Study") -> list[Transfer]:
    """The arms with KV and without control that have an arm to be counted against, in the order of the config.

    `without`: the arm that differs in nothing but its KV (the study's baseline where several do), or else the study's baseline. `twin`:
    what a claim names as such, or else an arm that differs in nothing but its control, `shuffle_items` before others.
    """
    settings = {
        name: arm.model_dump(mode="json", exclude={"description", "extends", "seeds"})
        for name, arm in study.arms.items()
    }
    baseline = study.comparison.baseline
    found = []
    for name, arm in study.arms.items():
        if arm.kv is None or arm.kv.control != "none":
            continue
        bare = [other for other, given in settings.items() if given == settings[name] | {"kv": None}]
        without = baseline if baseline in bare or not bare else bare[0]
        if without != name and without in study.arms:
            found.append(Transfer(name, tuple(_kinds(study, name)), without, _twin(study, name, settings)))
    return found


def _twin(study: "Study", name: str, settings: dict[str, dict[str, Any]]) -> str | None:
    controls = {other: given for other, given in settings.items() if given["kv"] and given["kv"]["control"] != "none"}
    named = [twin for claim in study.claims.values() if claim.arm == name and (twin := getattr(claim, "twin", None))]
    alike = [
        other
        for other, given in controls.items()
        if given | {"kv": given["kv"] | {"control": "none"}} == settings[name]
    ]
    alike.sort(key=lambda other: controls[other]["kv"]["control"] != "shuffle_items")
    return next((other for other in [*named, *alike] if other in controls), None)


def _kinds(study: "Study", name: str) -> Iterator[str]:
    """What is special about the student, about the way, and whose KV they are; an identity map is for models of the student's origin."""
    arm = study.arms[name]
    assert arm.kv is not None
    source = (study.student if arm.model == "student" else study.teachers.models[arm.model]).source
    if source in ("merged", "pruned"):
        yield f"{source} student"
    if arm.latent is not None:
        yield "latent tokens"
    if arm.kv.injected:
        yield "injected KV"
    if arm.kv.own:
        yield "its own KV"
    elif arm.kv.align.map != "identity":
        yield "foreign teachers"
    elif source != "pruned":
        yield "experts of its origin"
