"""One optimiser step over processes and over the forward passes that it accumulates: which rows each part reads, and what it weighs.

With n tokens in a part, N in the whole step and P parts (processes times forward passes), the mean in the part times n·P/N, averaged over
the parts as gradients are, is the mean over all N tokens. So neither the loss curve nor the weights depend on how the rows of a step
are cut, whatever their lengths: 8 rows as 8 × 1, 4 × 2, 2 × 4 or 1 × 8 (rows × passes) are one and the same step. The order of the rows
is a function of the seed and the number of the pass alone, so that a resumed run finds its place.

Every function also works in a process that is alone. The collective ones must be called by all processes, in the same order.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import BatchSampler, DataLoader, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from mtkv.models.cross_entropy import IGNORED_LABEL


def world_size() -> int:
    """How many processes train this model."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0; number 0 writes the files."""
    return distributed.get_rank() if world_size() > 1 else 0


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, as a new tensor without gradient. Collective."""
    summed = x.detach().clone()
    if world_size() > 1:
        distributed.all_reduce(summed)
    return summed


def means(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each value's mean over the processes, which all have the same names. Collective."""
    if world_size() == 1 or not values:
        return dict(values)
    names = sorted(values)
    averaged = (
        all_reduce_sum(torch.tensor([values[name] for name in names], dtype=torch.float64, device=device))
        / world_size()
    )
    return dict(zip(names, averaged.tolist(), strict=True))


class DeterministicSampler(Sampler[int]):
    """The same order for every arm. `epoch()` says at the start of each pass which one it is, from 0; its order is draw number
    `epoch() + 1` of one generator.

    With `group`, the rows of one optimiser step over all processes, rows of similar length come together: fewer padded tokens, but
    where tasks differ in length most of a batch is then of one, and what it teaches the next batch may undo. None:
    in random order.
    """

    def __init__(self, lengths: Sequence[int], group: int | None, seed: int, epoch: Callable[[], int]) -> None:
        self.lengths, self.group, self.seed, self.epoch = list(lengths), group, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epoch()):
            self._draw(generator)
        return iter(self._draw(generator))

    def _draw(self, generator: torch.Generator) -> list[int]:
        if self.group is None:
            return torch.randperm(len(self.lengths), generator=generator).tolist()
        return get_length_grouped_indices(self.lengths, self.group, generator=generator)


# what a term of the loss may be a mean over: target tokens (of the rows with their chain, of its pieces), supervised tokens, or rows
KINDS = ("chain_targets", "rows", "step_targets", "targets", "tokens")
PART = "part."
LOSS_TERMS: dict[str, "LossTerm"] = {}  # all that are declared, by name


@dataclass(frozen=True)
class LossTerm:
    """A term of the loss, declared once, where it is computed: its name in the log and what its value is a mean over (`KINDS`).

    Example: `CE = LossTerm("ce", "targets")`; then `CE(value, weight=0.5)` is {"ce": value, "part.ce": 0.5 · value}, the second
    what it adds to the loss. `owner`: who declares it, where that is not this package; `factor`: which of a phase's factors multiplies it
    (ce, kv, logits, router; None: none of them). Raises ValueError for another kind, and where the name is another term's already.
    """

    name: str
    mean_over: str
    owner: str = "mtkv"
    factor: str | None = "ce"

    def __post_init__(self) -> None:
        if self.mean_over not in KINDS:
            raise ValueError(f"loss term {self.name}: {self.mean_over!r} is not one of {', '.join(KINDS)}")
        if (other := LOSS_TERMS.setdefault(self.name, self)) != self:
            raise ValueError(
                f"loss term {self.name} of {self.owner}: {other.owner} has another of that name; rename it"
            )

    def __call__(self, value: Tensor, weight: float) -> dict[str, Tensor]:
        """The term, and its part of the loss."""
        return {self.name: value, PART + self.name: weight * value}


class Rows(Protocol):
    """Rows by number, with the function that makes a batch of them."""

    def collate(self, indices: Sequence[int]) -> dict[str, Any]: ...


def share_loader(rows: Any, order: Iterable[int], batch_size: int) -> DataLoader[Any]:
    """Batches of `batch_size` rows over all processes, in `order`; of each, this process's share."""
    batches = BatchSampler(order, batch_size, drop_last=False)
    return DataLoader(rows, batch_sampler=batches, collate_fn=partial(collate_share, rows, rank(), world_size()))


def collate_share(rows: Rows, process: int, processes: int, indices: Sequence[int]) -> dict[str, Any]:
    """The batch of process number `process`: its piece of the rows `indices`, cut as evenly as can be (5 rows for 2: 3 and 2).

    A process without a row, as may happen in the last batch of a pass, gets one that counts nowhere: no targets, nothing supervised.
    """
    share = np.array_split(np.asarray(indices), processes)[process].tolist()
    return rows.collate(share) if share else blank(rows.collate(indices[:1]))


def blank(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of the same shape with nothing to learn from: no token to attend to, no target, nothing supervised."""
    empty: dict[str, Any] = {name: batch[name][:0] for name in ("kv_sample", "kv_position") if name in batch}
    if "teacher_kv" in batch:
        empty["teacher_kv"] = [kv[:0] for kv in batch["teacher_kv"]]
    nothing = {
        "attention_mask": torch.zeros_like(batch["attention_mask"]),
        "labels": torch.full_like(batch["labels"], IGNORED_LABEL),
    }
    return batch | nothing | empty


def rows_in(attention_mask: Tensor) -> int:
    """Rows of a batch `[batch, time]` that count: every row has tokens, a `blank` one has none."""
    return int(attention_mask.any(1).sum())


def amounts(batch: Mapping[str, Any]) -> dict[str, int]:
    """How many rows, supervised tokens and targets (`KINDS`) a part holds; a row's first token is never predicted, a piece's is."""
    held = {"rows": rows_in(batch["attention_mask"]), "tokens": len(batch.get("kv_sample", ()))}
    for kind, labels in (("targets", "labels"), ("chain_targets", "text_labels")):
        held[kind] = int((batch[labels][:, 1:] != IGNORED_LABEL).sum()) if labels in batch else 0
    held["step_targets"] = int((batch["step_labels"] != IGNORED_LABEL).sum()) if "step_labels" in batch else 0
    return held


def per_part(batches: Sequence[Mapping[str, Any]], device: torch.device) -> dict[str, float]:
    """Mean amounts of the parts of one step: the `batches` of this process and as many of each other. Collective."""
    held = [amounts(batch) for batch in batches]
    sums = torch.tensor([sum(part[kind] for part in held) for kind in KINDS], dtype=torch.float64, device=device)
    return dict(zip(KINDS, (all_reduce_sum(sums) / (world_size() * len(held))).tolist(), strict=True))


def of_whole_step(
    terms: Mapping[str, Tensor], here: Mapping[str, float], mean: Mapping[str, float]
) -> dict[str, Tensor]:
    """Terms of a part, weighted so that their mean over the parts is that over the whole step; other values as they are.

    `here`: what the part holds (`amounts`); `mean`: what the parts hold on average (`per_part`). Adds `row_share`, the weight of a mean
    over rows. Raises KeyError for a part of the loss that no `LossTerm` declares.
    """
    share = {kind: here[kind] / mean[kind] if mean[kind] else 0.0 for kind in KINDS}
    weighted = {name: term if (kind := kind_of(name)) is None else term * share[kind] for name, term in terms.items()}
    return summed(weighted) | {"row_share": torch.tensor(share["rows"])}


def kind_of(name: str) -> str | None:
    """What a term is a mean over; None for what is no term. Raises KeyError for a part of the loss that is not known."""
    if name.startswith(PART):
        return LOSS_TERMS[name.removeprefix(PART)].mean_over
    return LOSS_TERMS[name].mean_over if name in LOSS_TERMS else None


def summed(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The terms and their `loss`, the sum of what each adds (`part.*`)."""
    parts = [value for name, value in terms.items() if name.startswith(PART)]
    return {**terms, "loss": torch.stack(parts).sum()}
