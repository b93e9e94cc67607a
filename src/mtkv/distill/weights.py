"""What of a model a checkpoint holds: the parameters that are trained and the buffers that belong to its state."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtkv.distill.optimiser_state import split_like


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters with a gradient, tied ones once, and persistent buffers, by name."""
    kept = model.state_dict().keys()
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad} | {
        name: tensor for name, tensor in model.named_buffers() if name in kept
    }


def save_trained(model: nn.Module, path: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the trained tensors as safetensors; `state`: where their values are taken from when the model's own are shards."""
    source = trained_tensors(model) if state is None else {name: state[name] for name in trained_tensors(model)}
    save_file({name: tensor.detach().contiguous() for name, tensor in source.items()}, path)


@torch.no_grad()
def load_trained(model: nn.Module, path: Path) -> None:
    """Put saved tensors back, in place. Raises ValueError when names, shapes or formats are not the model's."""
    saved, own = load_file(path), trained_tensors(model)
    form = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in own.items()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in saved.items()}
    if different := sorted(name for name in form.keys() | found.keys() if form.get(name) != found.get(name)):
        name = different[0]
        raise ValueError(
            f"{path}: {name} is {found.get(name, 'absent')}, but the model trained now has {form.get(name, 'none')};"
            " the checkpoint is of other code: remove its folder to train from the start"
        )
    for name, tensor in own.items():
        tensor.copy_(split_like(saved[name], tensor))


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
