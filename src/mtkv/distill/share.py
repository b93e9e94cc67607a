"""One batch spread over processes: each gets a share of the rows, and the means stay those of the whole batch.

With n tokens here, N in the whole batch and P processes, the mean here times n·P/N, averaged over the processes as gradients are, is the
mean over all N tokens. So the loss curve does not depend on the number of processes, whatever the rows' lengths.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from mtkv.distill.processes import rank, total, world
from mtkv.models.crossentropy import IGNORED_LABEL

# term of the loss → what it is a mean over: target tokens, supervised tokens, or rows
MEAN_OVER = {
    "ce": "targets",
    "kd": "targets",
    "route_ce": "targets",
    "key": "tokens",
    "value": "tokens",
    "cosine": "tokens",
    "attention": "tokens",
    "entropy": "rows",
}
PART = "part."


class Rows(Protocol):
    """Rows by number, with the function that makes a batch of them."""

    def collate(self, indices: Sequence[int]) -> dict[str, Any]: ...


def share_loader(rows: Any, order: Iterable[int], batch_size: int) -> DataLoader[Any]:
    """Batches of `batch_size` rows over all processes, in `order`; of each, this process's share."""
    batches = BatchSampler(order, batch_size, drop_last=False)
    return DataLoader(rows, batch_sampler=batches, collate_fn=partial(collate_share, rows, rank(), world()))


def collate_share(rows: Rows, process: int, processes: int, indices: Sequence[int]) -> dict[str, Any]:
    """The batch of process number `process`: as equal a part of the rows as there is, one after the other.

    A process without a row, as may happen in the last batch of a pass, gets one that counts nowhere: no targets, nothing supervised.
    """
    share = np.array_split(np.asarray(indices), processes)[process].tolist()
    return rows.collate(share) if share else blank(rows.collate(indices[:1]))


def blank(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch with nothing to learn from it."""
    empty: dict[str, Any] = {name: batch[name][:0] for name in ("kv_sample", "kv_position") if name in batch}
    if "teacher_kv" in batch:
        empty["teacher_kv"] = [kv[:0] for kv in batch["teacher_kv"]]
    nothing = {
        "attention_mask": torch.zeros_like(batch["attention_mask"]),
        "labels": torch.full_like(batch["labels"], IGNORED_LABEL),
    }
    return batch | nothing | empty


def rows_in(labels: Tensor) -> int:
    """Rows of a batch `[batch, time]` that count: every row has a target, a `blank` one has none."""
    return int((labels != IGNORED_LABEL).any(1).sum())


def amounts(labels: Tensor, supervised: Tensor | None) -> dict[str, int]:
    """How much of each kind this process's batch holds; the first token of a row is never predicted."""
    targets = int((labels[:, 1:] != IGNORED_LABEL).sum())
    return {"targets": targets, "rows": rows_in(labels), "tokens": 0 if supervised is None else len(supervised)}


def of_whole_batch(terms: Mapping[str, Tensor], here: Mapping[str, int]) -> dict[str, Tensor]:
    """Terms of this process's share, weighted so that their mean over the processes is that over the whole batch; others as they are.

    Adds `row_share`, the weight of a mean over rows. Alone: the terms as they are. Raises KeyError for a part of the loss that `MEAN_OVER`
    does not know. Collective.
    """
    if world() == 1:
        return dict(terms)
    device = next(iter(terms.values())).device
    names = sorted(here)
    local = torch.tensor([here[name] for name in names], dtype=torch.float64, device=device)
    share = dict(zip(names, (local * world() / total(local).clamp_min(1)).tolist(), strict=True))
    weighted = {name: _weighted(name, term, share) for name, term in terms.items()}
    return weighted | {"row_share": local.new_tensor(share["rows"])}


def _weighted(name: str, term: Tensor, share: Mapping[str, float]) -> Tensor:
    kind = MEAN_OVER[name.removeprefix(PART)] if name.startswith(PART) else MEAN_OVER.get(name)
    return term if kind is None else term * share[kind]
