"""Where a frozen model lies that one GPU may not hold: nothing of it changes what the model computes.

single            on one GPU, or the CPU where there is none
device_map        layer by layer on all GPUs of the job, then in host memory (accelerate); one process
tensor_parallel   every layer's heads and channels split over the job's processes (transformers' `tp_plan`), which all read the same rows
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import PretrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig

SINGLE = "single"
# placement → arguments of from_pretrained
PLACEMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    SINGLE: lambda: {},
    "device_map": lambda: {"device_map": "auto"},
    "tensor_parallel": lambda: {"distributed_config": DistributedConfig(tp_plan="auto")},
}


def placement_arguments(placement: str) -> dict[str, Any]:
    """What `from_pretrained` is told. Raises ValueError for an unknown placement."""
    if placement not in PLACEMENTS:
        raise ValueError(f"placement {placement!r} is unknown; there are {', '.join(PLACEMENTS)}")
    return PLACEMENTS[placement]()


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model wants its token ids, also when parts of it lie in host memory or on disk."""
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return model.device if device is None else torch.device(device)


def is_split(model: PreTrainedModel) -> bool:
    """Whether each process has only some heads of the model (`tensor_parallel`)."""
    return (getattr(model, "tp_size", None) or 1) > 1


def all_heads(x: Tensor, model: PreTrainedModel) -> Tensor:
    """K or V `[batch, kv_heads here, time, head_dim]`, or a number for each head and token, with all KV heads of the model. Collective
    where it is split.

    Raises ValueError when the processes' heads do not make up the model's.
    """
    if not is_split(model) or x.shape[1] == kv_heads(model):
        return x
    if x.shape[1] * distributed.get_world_size() != kv_heads(model):
        raise ValueError(
            f"{distributed.get_world_size()} processes with {x.shape[1]} KV heads each do not make up the {kv_heads(model)}"
            f" of {type(model).__name__}; choose a number of processes that divides them"
        )
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts, 1)


def kv_heads(model: PreTrainedModel) -> int:
    """KV heads of each layer, as the config has it."""
    return kv_shape(model.config)[0]


def kv_shape(config: PretrainedConfig) -> tuple[int, int]:
    """KV heads and the width of one, the same in every layer. Raises ValueError, naming the model, where layers differ (Gemma 4): what
    is kept and compared of K and V has one width."""
    shapes = [layer_kv_shape(layer) for layer in layer_configs(config)]
    if len(set(shapes)) > 1:
        found = ", ".join(f"{shapes.count(shape)} with {shape[0]} of {shape[1]}" for shape in dict.fromkeys(shapes))
        raise ValueError(
            f"{type(config).__name__}: its layers differ in KV heads and their width ({found} channels), and K and V of one shape are "
            "needed; the model can be trained and evaluated without KV"
        )
    return shapes[0]


def layer_kv_shape(layer: PretrainedConfig) -> tuple[int, int]:
    """KV heads of one layer, those of the queries where the two are not told apart, and the width of one."""
    config: Any = layer
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(heads), int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def layer_configs(config: PretrainedConfig) -> list[PretrainedConfig]:
    """The config of each layer of the text part: the same one, unless transformers keeps one of its own for layers that differ."""
    text: Any = config.get_text_config()
    if getattr(text, "is_heterogeneous", False):
        return [text.per_layer_config[layer] for layer in range(text.num_hidden_layers)]
    return [text] * text.num_hidden_layers
