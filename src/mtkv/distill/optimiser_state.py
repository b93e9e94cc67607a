"""The optimiser's state as one process has it, wherever its parts lie: what a checkpoint holds whatever the number of processes.

A state that FSDP has split (DTensor) is put together for the file, and split anew for as many processes as there are then.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def whole_tensor(x: Tensor) -> Tensor:
    """All of a tensor that is split over processes, on the CPU; others as they are. Collective."""
    return x.full_tensor().cpu() if isinstance(x, DTensor) else x


def split_like(x: Tensor, like: Tensor) -> Tensor:
    """This process's part of `x`, split as `like` is. All processes have the same `x`."""
    if not isinstance(like, DTensor):
        return x
    own = x.to(like.device, like.dtype)
    return distribute_tensor(own, like.device_mesh, like.placements, src_data_rank=None)


def whole_state(optimizer: Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` with whole tensors. Collective."""
    state = optimizer.state_dict()
    whole = {
        number: {name: whole_tensor(value) if torch.is_tensor(value) else value for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return state | {"state": whole}


def split_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A whole state for `optimizer.load_state_dict`, split as its parameters are. Raises ValueError when it is of other parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(parameters) != sum(len(group["params"]) for group in state["param_groups"]):
        raise ValueError("the saved state of the optimiser is of another number of parameters than are trained now")
    split = {
        number: {name: _part(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return state | {"state": split}


def _part(value: Any, parameter: Tensor) -> Any:
    is_moment = torch.is_tensor(value) and value.shape == parameter.shape  # and not the number of steps
    return split_like(value, parameter) if is_moment else value
