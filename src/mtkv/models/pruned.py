"""Some layers of a model as a model of its own (`source: pruned`); `mtkv.models.load.pruned_folder` saves it.

What is left computes what the whole model does when the other layers hand on what they are given; a model of which that is not true, as
its layers depend on their place, is refused. So the K and V of the two live in one basis, layer by layer.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

TOKENS = 16
SAME = 16  # tolerance in units of the number format's spacing

States = list[Float[Tensor, "1 tokens hidden"]]


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Path and list of the layers of a causal language model. Raises ValueError, naming the class, for a model without one such list."""
    if model.get_output_embeddings() is None:
        raise ValueError(f"{type(model).__name__} has no output head; a student is cut from a causal language model")
    count = model.config.get_text_config().num_hidden_layers
    inside = {id(module) for module in model.get_decoder().modules()}
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and id(module) in inside
    }
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(outer)} lists of {count} layers where one is needed; no student can be cut from it"
        )
    return outer[0], lists[outer[0]]


@torch.no_grad()
def layer_states(model: PreTrainedModel, layers: Sequence[int]) -> States:
    """What each of `layers` gives for some tokens when all others hand on what they are given. Raises ValueError for a layer that the model
    has not."""
    _, modules = decoder_layers(model)
    if absent := [layer for layer in layers if layer >= len(modules)]:
        raise ValueError(f"{type(model).__name__} has no layer {absent[0]}; it has 0 to {len(modules) - 1}")
    tokens = torch.arange(1, TOKENS + 1, device=model.device)[None] % model.config.get_text_config().vocab_size
    found: States = []
    with ExitStack() as hooks:
        for number, module in enumerate(modules):
            hook = _recorded_in(found) if number in layers else _handed_on
            hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        model(input_ids=tokens, use_cache=False)
    return found


def _handed_on(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    given = args[0] if args else kwargs["hidden_states"]
    return (given, *output[1:]) if isinstance(output, tuple) else given


def _recorded_in(found: States) -> Any:
    def hook(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    return hook


def cut(model: PreTrainedModel, layers: Sequence[int]) -> dict[str, Tensor]:
    """The weights of a model of those layers alone, numbered anew; `model.config`, in place, is that model's from here on.

    Of the config's lists with an entry for each layer (`layer_types`, …) these layers' entries are kept.
    """
    path, modules = decoder_layers(model)
    text: Any = model.config.get_text_config()
    for name, value in list(vars(text).items()):
        if "layer" in name and isinstance(value, list) and len(value) == len(modules):
            setattr(text, name, [value[layer] for layer in layers])
    text.num_hidden_layers = len(layers)
    weights = {}
    for name, tensor in model.state_dict().items():
        layer, dot, rest = name.removeprefix(f"{path}.").partition(".")
        if not name.startswith(f"{path}."):
            weights[name] = tensor
        elif int(layer) in layers:
            weights[f"{path}.{layers.index(int(layer))}{dot}{rest}"] = tensor
    return weights


def check_cut(model: PreTrainedModel, layers: Sequence[int], expected: States) -> None:
    """Raises ValueError, naming the first such layer, where the model that was cut out gives something else than `expected`, the
    `layer_states` of the whole one at `layers`."""
    for layer, own, states in zip(layers, layer_states(model, range(len(layers))), expected, strict=True):
        allowed = SAME * torch.finfo(states.dtype).eps * states.float().abs().max()
        if not (own.float() - states.float()).abs().max() <= allowed:
            raise ValueError(
                f"{type(model).__name__}: layer {layer} computes something else in a model of layers {list(layers)} alone, so what it does "
                "depends on its place; no student can be cut from this model"
            )
