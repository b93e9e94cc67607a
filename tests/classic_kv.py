"""The KV section that tests of the loss begin from: a ridge map and every term switched on, whatever the config's defaults are."""

from typing import Any

from pydantic import BaseModel

ALIGN = {"map": "ridge", "side": "teacher"}
LOSS = {"distance": "mse", "unit": "layer", "beta": 0.1, "gamma": 0.01}


def classic(given: dict[str, Any]) -> dict[str, Any]:
    """`given` on top of that."""
    parts = {name: given.get(name, {}) for name in ("align", "loss")}
    written = {n: p.model_dump(exclude_unset=True) if isinstance(p, BaseModel) else p for n, p in parts.items()}
    return given | {"align": ALIGN | written["align"], "loss": LOSS | written["loss"]}
