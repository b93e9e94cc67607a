"""Statistics that a loss term takes of the rows it sees, made of all rows of an optimiser step.

A spread that both sides are divided by depends on which rows are looked at together. Over several processes they add up their sums.
Where a step accumulates several forward passes, `looked_at` reads all of its rows once before, without gradient, and the passes that
train find what was measured: then 4 × 2 rows are divided by what 8 × 1 are.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtkv.training.data_parallel import all_reduce_sum


class Pooled:
    """What was measured, by name: sums and, last, the number of values that each is of. `open` while more is to come."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.open = True


_step: Pooled | None = None  # of the step under way; None where every pass is a step of its own


@contextmanager
def pooling(pooled: Pooled | None) -> Iterator[None]:
    """Inside, `mean_of_step` adds to `pooled` or, when that is complete, reads from it."""
    global _step
    before, _step = _step, pooled
    try:
        yield
    finally:
        _step = before


def looking() -> bool:
    """Whether this pass only measures (it runs inside `looked_at`): its loss is not used."""
    return _step is not None and _step.open


def looked_at(forward: Callable[..., object], batches: Iterable[Any]) -> Pooled:
    """What `forward` measures in all `batches` and all processes. Draws of random numbers are taken back. Collective."""
    pooled = Pooled()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), torch.no_grad(), pooling(pooled):
        for batch in batches:
            forward(**batch)
    pooled.sums = {name: all_reduce_sum(pooled.sums[name]) for name in sorted(pooled.sums)}
    pooled.open = False
    return pooled


def mean_of_step(name: str, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean of `x` over `dims` in float64, taken over all rows of the step, and the number of values that each mean is of.

    `x [rows or tokens, …]`, 0 among `dims`. No gradient. `name`: the statistic's own, the same in each pass. Collective, unless the step
    accumulates passes. Raises KeyError for a statistic that was not measured before.
    """
    sums = x.detach().sum(dims, dtype=torch.float64)
    together = torch.cat([sums.flatten(), sums.new_tensor([x.numel() / sums.numel()])])
    if _step is None:
        together = all_reduce_sum(together)
    elif _step.open:
        _step.sums[name] = _step.sums[name] + together if name in _step.sums else together
    else:
        together = _step.sums[name]
    return (together[:-1] / together[-1].clamp_min(1)).view(sums.shape), together[-1]
