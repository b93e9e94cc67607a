"""What a loss term weighs at a point of a training in phases (`training.phases`): a function of the share of the steps that is done, so
that a training that goes on after a cut weighs as one that was never cut."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from mtkv.training.data_parallel import LOSS_TERMS, PART

if TYPE_CHECKING:
    from mtkv.config.phases import Phase

TOLERANCE = 1e-9  # 0.1 + 0.2 is a little more than 3 of 10 steps


def phase_weights(phases: Sequence["Phase"], progress: float) -> dict[str, float]:
    """Factors `ce` and `kv` when the share `progress`, from 0 to below 1, of the steps is done; nothing without phases."""
    start = 0.0
    for phase in phases:
        if progress < start + phase.share - TOLERANCE or phase is phases[-1]:
            done = max(0.0, progress - start) / phase.share
            ramps = {"ce": phase.ce, "kv": phase.kv or [1.0, 1.0]}
            return {name: first + (last - first) * done for name, (first, last) in ramps.items()}
        start += phase.share
    return {}


def in_phase(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """`terms` with what each adds to the loss (`part.*`) times the factor that it declares; the caller sums them anew."""
    factors = {name: LOSS_TERMS[name.removeprefix(PART)].factor for name in terms if name.startswith(PART)}
    return {name: term * weights.get(factors.get(name) or "", 1.0) for name, term in terms.items()}
