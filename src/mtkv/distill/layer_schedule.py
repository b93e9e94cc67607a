"""Which student layers are distilled at a point of the training, and means over them (method.md §8)."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LayerWeight = Float[Tensor, " layers"]


def layer_range(layers: int, which: str | Sequence[int]) -> tuple[int, int]:
    """First and last layer, both included, of `all`, of a third by name (`first`, `middle`, `last`), or as given by number.

    Thirds of a model that three does not divide overlap by a layer rather than leave one out.
    """
    if not isinstance(which, str):
        return int(which[0]), int(which[1])
    third = math.ceil(layers / 3)
    first = {"all": 0, "first": 0, "middle": (layers - third) // 2, "last": layers - third}[which]
    return first, layers - 1 if which == "all" else first + third - 1


def layer_schedule(layers: int, first: int, last: int, anneal: float, progress: float) -> LayerWeight:
    """1 for the layers that are distilled now, 0 for the others, on the CPU.

    The layers in range are `first` to `last`, both included, counted from 0. While `progress` (steps done / all steps) is below `anneal`
    (a share of the steps, 0 switches annealing off) only the first third of the range, rounded up, is distilled. Raises ValueError
    for a range outside the model.
    """
    if not 0 <= first <= last < layers:
        raise ValueError(f"layers {first} to {last}: not inside 0 to {layers - 1}, the layers of the student")
    in_range = last - first + 1
    count = math.ceil(in_range / 3) if progress < anneal else in_range
    weight = torch.zeros(layers)
    weight[first : first + count] = 1
    return weight


def layer_shares(layer_weight: LayerWeight | None, layers: int) -> tuple[list[int], Float[Tensor, " kept"]]:
    """The layers with a weight above zero, and their shares, which sum to 1: a mean over the layers that count. None: all alike.

    Raises ValueError when there is not one weight per layer.
    """
    weight = torch.ones(layers) if layer_weight is None else layer_weight.detach().cpu()
    if weight.shape != (layers,):
        raise ValueError(f"layer_weight has shape {tuple(weight.shape)}, but the student has {layers} layers")
    kept = [layer for layer, value in enumerate(weight.tolist()) if value > 0]
    return kept, weight[kept] / weight[kept].sum()
