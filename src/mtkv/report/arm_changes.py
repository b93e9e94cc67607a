"""What each arm changes in the arm that it extends: the settings behind an ablation or a control, read from the study's config.

In: the resolved arms of a `Study`. Out: short texts such as `kv.loss.layers: all → first`, and the settings of each KV loss.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mtkv.report.strings import say

if TYPE_CHECKING:
    from mtkv.config.arms import Arm
    from mtkv.config.study import Study

NO_SETTINGS = ("description", "extends", "seeds")


def changes(study: "Study") -> dict[str, list[str]]:
    """Arm → what differs from the arm it extends, in the order of the config; arms that extend none are left out."""
    written = {
        name: dict(_leaves(arm.model_dump(mode="json", exclude=set(NO_SETTINGS)))) for name, arm in study.arms.items()
    }
    return {
        name: list(_differences(written[arm.extends], written[name]))
        for name, arm in study.arms.items()
        if arm.extends in study.arms
    }


def kv_part(arm: "Arm") -> dict[str, Any]:
    """What the figures need of an arm's KV loss: teachers, layers, kinds (K, V) and control."""
    assert arm.kv is not None
    loss = arm.kv.loss
    kinds = [name for name, weight in (("K", loss.lambda_k), ("V", loss.lambda_v)) if weight > 0]
    layers = loss.layers if isinstance(loss.layers, str) else f"{loss.layers[0]}–{loss.layers[1]}"
    return {
        "teachers": list(arm.kv.teachers),
        "layers": layers,
        "kinds": " + ".join(kinds) or "neither",
        "control": arm.kv.control,
        "aligns": [f"{teacher}/{arm.kv.align.slug}" for teacher in arm.kv.teachers],
    }


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a tree that is no mapping."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{path}.{key}" if path else key)


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """One text per setting that differs; a whole section that comes or goes is one text."""
    told: set[str] = set()
    for path in dict.fromkeys([*before, *after]):
        if before.get(path) == after.get(path) and (path in before) == (path in after):
            continue
        section = path.split(".")[0]
        if (section in before) != (section in after):  # a section is null on one side
            if section not in told:
                told.add(section)
                yield say("without {section}" if section in after else "with {section}", section=section)
            continue
        yield f"{path}: {_shown(before.get(path))} → {_shown(after.get(path))}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
