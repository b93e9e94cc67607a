"""The average of several models' weights ("model soup", arXiv 2203.05482); `mtkv.models.load.merged_folder` makes a model of it.

Models of one architecture that were tuned from one start can be merged: the baseline that fusing their KV has to face.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def average_weights(states: Sequence[dict[str, Tensor]], names: Sequence[str]) -> dict[str, Tensor]:
    """The mean of each tensor over `states`, taken in float64. Raises ValueError naming the first tensor that one of them lacks or has in
    another shape."""
    for state, name in zip(states[1:], names[1:], strict=True):
        for key in sorted(states[0].keys() | state.keys()):
            shapes = [list(each[key].shape) if key in each else None for each in (states[0], state)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"cannot merge {names[0]!r} and {name!r}: {key} is {shapes[0]} in the one and {shapes[1]} in the other; "
                    "merge takes models of one architecture"
                )
    return {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }
