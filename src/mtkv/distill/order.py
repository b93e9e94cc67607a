"""The order of the training rows: a function of the seed and the number of the pass alone, so that a resumed run finds its place."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class LengthOrder(Sampler[int]):
    """Rows of similar length together, in an order that depends on the seed and the pass alone: the same for every arm.

    `group`: rows of one optimiser step, over all processes. `epoch()` says at the start of each pass which one it is, from 0; its
    order is draw number `epoch() + 1` of one generator.
    """

    def __init__(self, lengths: Sequence[int], group: int, seed: int, epoch: Callable[[], int]) -> None:
        self.lengths, self.group, self.seed, self.epoch = list(lengths), group, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epoch()):
            get_length_grouped_indices(self.lengths, self.group, generator=generator)
        return iter(get_length_grouped_indices(self.lengths, self.group, generator=generator))
