"""A training in phases (`training.phases`): what a loss term weighs, which rows are read and how far, and the learning rate, each a
function of the share of the steps that is done, so that a training that goes on after a cut is as one that was never cut."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, groupby, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from mtkv.models.cross_entropy import IGNORED_LABEL
from mtkv.training.data_parallel import LOSS_TERMS, PART

if TYPE_CHECKING:
    from mtkv.config.phases import Phase

TOLERANCE = 1e-9  # 0.1 + 0.2 is a little more than 3 of 10 steps


def phase_at(phases: Sequence["Phase"], progress: float) -> tuple[int, float] | None:
    """Number of the phase when the share `progress`, from 0 to below 1, of the steps is done, and the share of it that is done; None
    without phases."""
    start = 0.0
    for number, phase in enumerate(phases):
        if progress < start + phase.share - TOLERANCE or phase is phases[-1]:
            return number, max(0.0, progress - start) / phase.share
        start += phase.share
    return None


def phase_weights(phases: Sequence["Phase"], progress: float) -> dict[str, float]:
    """Factors `ce`, `kv`, `logits` and `router` at `progress` (`phase_at`); nothing without phases."""
    if (found := phase_at(phases, progress)) is None:
        return {}
    phase, done = phases[found[0]], found[1]
    one = [1.0, 1.0]
    ramps = {"ce": phase.ce, "kv": phase.kv or one, "logits": phase.logits or phase.ce, "router": phase.router or one}
    return {name: first + (last - first) * done for name, (first, last) in ramps.items()}


def in_phase(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """`terms` with what each adds to the loss (`part.*`) times the factor that it declares; the caller sums them anew."""
    factors = factors_of(terms)
    return {name: term * weights.get(factors.get(name) or "", 1.0) for name, term in terms.items()}


def factors_of(terms: Iterable[str]) -> dict[str, str | None]:
    """Which of a phase's factors multiplies each part of the loss (`part.*`) among the names `terms`."""
    return {name: LOSS_TERMS[name.removeprefix(PART)].factor for name in terms if name.startswith(PART)}


def phase_steps(phases: Sequence["Phase"], steps: int) -> list[tuple["Phase", int]]:
    """Each phase that has any of `steps`, and how many."""
    numbers = (found[0] for step in range(steps) if (found := phase_at(phases, step / steps)) is not None)
    return [(phases[number], len(list(each))) for number, each in groupby(numbers)]


def learning_rates(
    phases: Sequence["Phase"], steps: int, peak: float, shape: Callable[[int], Callable[[int], float]]
) -> list[float]:
    """Learning rate ÷ the arm's `peak` at each of `steps`, and after the last. `shape(n)`: the arm's warm-up and schedule over n steps, as
    a function of the step. A phase with a learning rate of its own runs through the shape in its steps; one without has the arm's at that
    step of the whole training."""
    whole, found, start = shape(steps), [0.0], 0
    for phase, length in phase_steps(phases, steps):
        # one more than its steps: the next phase's first replaces it
        if phase.learning_rate is None:
            found[start:] = [whole(start + step) for step in range(length + 1)]
        else:
            own = shape(length)
            found[start:] = [phase.learning_rate / peak * own(step) for step in range(length + 1)]
        start += length
    return found


def phase_rows(datasets: Sequence[str], sources: Sequence[str] | None, most: int | None) -> list[int]:
    """Numbers of the first `most` rows (None: all) whose dataset is one of `sources` (None: any). Raises ValueError where there is none."""
    found = [number for number, dataset in enumerate(datasets) if sources is None or dataset in sources]
    if not found:
        raise ValueError(f"none of the arm's {len(datasets)} training rows is of {', '.join(sources or [])}")
    return found[:most]


class PhaseSampler(Sampler[int]):
    """The row numbers of a whole training in one pass, for phases with rows of their own. Each selection of rows is read in passes of its
    own; a phase with the selection of an earlier one goes on where that one stopped.

    `size`: rows of a step, over all processes; `passes(rows, number)`: the order of pass `number`, from 0, over `rows`, as places in it.
    """

    def __init__(
        self,
        phases: Sequence["Phase"],
        steps: int,
        size: int,
        datasets: Sequence[str],
        passes: Callable[[list[int], int], Sampler[int]],
    ) -> None:
        self.passes = passes
        self.parts = [
            (phase_rows(datasets, phase.sources, phase.rows), length * size)
            for phase, length in phase_steps(phases, steps)
        ]

    def __len__(self) -> int:
        return sum(length for _, length in self.parts)

    def __iter__(self) -> Iterator[int]:
        streams: dict[tuple[int, ...], Iterator[int]] = {}
        for rows, length in self.parts:
            yield from islice(streams.setdefault(tuple(rows), self._endless(rows)), length)

    def _endless(self, rows: list[int]) -> Iterator[int]:
        return (rows[place] for number in count() for place in self.passes(rows, number))


def prompts_only(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of `DistillationRows` whose rows end where their targets begin: no target among its tokens, no label, and the KV of the
    prompts' tokens alone."""
    targets = batch["labels"] != IGNORED_LABEL
    length = targets.int().argmax(1)  # 0 in a row that counts nowhere (`data_parallel.blank`)
    width = max(1, int(length.max()))
    inside = torch.arange(width, device=length.device) < length[:, None]
    ids = batch["input_ids"][:, :width]
    cut = {
        "input_ids": ids.where(inside, ids[:, :1]),
        "attention_mask": batch["attention_mask"][:, :width] * inside,
        "labels": torch.full_like(ids, IGNORED_LABEL),
    }
    if "kv_sample" in batch:
        kept = batch["kv_position"] < length[batch["kv_sample"]]
        cut |= {name: batch[name][kept] for name in ("kv_sample", "kv_position")}
        cut["teacher_kv"] = [kv[kept] for kv in batch["teacher_kv"]]
    return batch | cut
