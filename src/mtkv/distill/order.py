"""The order of the training rows: a function of the seed and the number of the pass alone, so that a resumed run finds its place."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class RowOrder(Sampler[int]):
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
