"""Place a frozen model that may be too large for one GPU. The placement changes nothing that the model computes.

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
    """Arguments of `from_pretrained` for a placement. Raises ValueError for an unknown one."""
    if placement not in PLACEMENTS:
        raise ValueError(f"placement {placement!r} is unknown; there are {', '.join(PLACEMENTS)}")
    return PLACEMENTS[placement]()


def input_device(model: PreTrainedModel) -> torch.device:
    """The device on which a model expects its token ids, also when parts of it lie in host memory or on disk."""
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return model.device if device is None else torch.device(device)


def is_split(model: PreTrainedModel) -> bool:
    """Whether each process has only some heads of the model (`tensor_parallel`)."""
    return (getattr(model, "tp_size", None) or 1) > 1


def all_heads(x: Tensor, model: PreTrainedModel) -> Tensor:
    """K or V `[batch, kv_heads of this process, time, head_dim]`, or one number per head and token, gathered to all KV heads of the model.

    A collective call where the model is split, else `x` itself. Raises ValueError when the processes' heads are not those of the model.
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
    """Number of KV heads in each layer, from the model's config. Raises what `kv_shape` raises."""
    return kv_shape(model.config)[0]


def kv_shape(config: PretrainedConfig) -> tuple[int, int]:
    """(number of KV heads, head_dim), the same in every layer. Raises ValueError, naming the model, where layers differ (Gemma 4): the
    store and the loss know one width."""
    shapes = [layer_kv_shape(layer) for layer in layer_configs(config)]
    if len(set(shapes)) > 1:
        found = ", ".join(f"{shapes.count(shape)} with {shape[0]} of {shape[1]}" for shape in dict.fromkeys(shapes))
        raise ValueError(
            f"{type(config).__name__}: its layers differ in KV heads and their width ({found} channels), and K and V of one shape are "
            "needed; the model can be trained and evaluated without KV"
        )
    return shapes[0]


def layer_kv_shape(layer: PretrainedConfig) -> tuple[int, int]:
    """(number of KV heads, head_dim) of one layer's config; without `num_key_value_heads` the number of query heads counts."""
    config: Any = layer
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(heads), int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def layer_configs(config: PretrainedConfig) -> list[PretrainedConfig]:
    """One config per layer of the text model: the model's own each time, unless transformers has separate ones (heterogeneous layers)."""
    text: Any = config.get_text_config()
    if getattr(text, "is_heterogeneous", False):
        return [text.per_layer_config[layer] for layer in range(text.num_hidden_layers)]
    return [text] * text.num_hidden_layers
