"""What `mtkv gate` measured of a study's arms before they were trained.

In: the cards in `results/<study>/gate/`, which nothing makes but that command. Out: one `Gate` for each arm that has a card.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mtkv.provenance.files import read_json

ALL = -1  # in place of a layer's number


@dataclass(frozen=True)
class Gate:
    """cos(∂CE, ∂KV) over all layers, keys and values, with the right row's KV minus that with another row's: mean over `batches` batches of
    rows, and its standard error."""

    difference: float
    error: float
    batches: int


def read_gates(root: Path, arms: Iterable[str], absent: list[str]) -> dict[str, Gate]:
    """The gate of each of `arms` that has one in `root` (results/<study>); of several the one of the most batches.

    A card that cannot be read, or lacks a number, is left out and its path added to `absent`.
    """
    found: dict[str, Gate] = {}
    for arm in arms:
        for path in sorted(root.glob(f"gate/{arm}/*/card.json")):
            try:
                gate = _gate(path)
            except (OSError, ValueError, LookupError, TypeError, StopIteration):
                absent.append(path.relative_to(root).as_posix())
                continue
            if arm not in found or gate.batches > found[arm].batches:
                found[arm] = gate
    return found


def _gate(card: Path) -> Gate:
    """Raises one of several errors for a file that is not what `mtkv.stages.gate` writes."""
    facts = read_json(card)["result"]
    whole = next(row for row in facts["cosines"] if (row["layer"], row["kind"]) == (ALL, "both"))
    gate = Gate(float(whole["difference"]), float(whole["difference_se"]), int(facts["batches"]))
    if not (math.isfinite(gate.difference) and gate.error >= 0):
        raise ValueError(f"{card}: {gate} is no measurement")
    return gate
