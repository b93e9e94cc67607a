"""Several processes that train one model: who this one is, and numbers that all of them make together.

Every function also works in a process that is alone. The collective ones must be called by all processes, in the same order.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, distributed


def world() -> int:
    """How many processes train this model."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0; number 0 writes the files."""
    return distributed.get_rank() if world() > 1 else 0


def total(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, as a new tensor without gradient. Collective."""
    summed = x.detach().clone()
    if world() > 1:
        distributed.all_reduce(summed)
    return summed


def means(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each value's mean over the processes, which all have the same names. Collective."""
    if world() == 1 or not values:
        return dict(values)
    names = sorted(values)
    averaged = total(torch.tensor([values[name] for name in names], dtype=torch.float64, device=device)) / world()
    return dict(zip(names, averaged.tolist(), strict=True))
