"""Find the attention layers of a transformers model, and refuse by name those without per-token keys and values.

A model has one or more *parts*: a decoder or an encoder alone has one; an encoder–decoder has `encoder`, `decoder` and `cross`.
"""

import re
import sys
from collections import defaultdict
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

PER_TOKEN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "window_attention"}
CROSS_ATTENTION = re.compile(r"encdec|cross|encoder_attn", re.IGNORECASE)


def attention_layers(model: PreTrainedModel, part: str | None = None) -> list[nn.Module]:
    """The attention modules of one part, in layer order; by default the encoder of an encoder–decoder.

    Raises NotImplementedError, naming model and reason, for a model whose layers do not all have K and V per token or do not
    pass them through transformers' attention interface; ValueError for a part the model does not have.
    """
    parts = _parts(model)
    refuse = _reason_to_refuse(model, parts)
    if refuse is not None:
        raise NotImplementedError(f"{type(model).__name__}: {refuse}")
    chosen = part or next(name for name in ("encoder", "self", "decoder", "cross") if name in parts)
    if chosen not in parts:
        available = sorted(set(parts) - {"self"}) or "only one part; leave `part` out"
        raise ValueError(f"{type(model).__name__}: no part {part!r}, it has {available}")
    return parts[chosen]


def common_ancestors(model: PreTrainedModel, layers: list[nn.Module]) -> list[nn.Module]:
    """Modules whose forward runs all of `layers`: everything above the list of layers."""
    wanted = {id(layer) for layer in layers}
    paths = [path.split(".") for path, module in model.named_modules() if id(module) in wanted]
    ancestors: list[nn.Module] = [model]
    for steps in zip(*paths, strict=False):
        below = getattr(ancestors[-1], steps[0])
        if len(set(steps)) > 1 or isinstance(below, nn.ModuleList) or id(below) in wanted:
            break
        ancestors.append(below)
    return ancestors


def _parts(model: PreTrainedModel) -> dict[str, list[nn.Module]]:
    found: dict[str, list[nn.Module]] = defaultdict(list)
    inside = None if _text_config(model) is None else {id(module) for module in model.get_decoder().modules()}
    for path, module in model.named_modules():
        if _is_attention(module) and (inside is None or id(module) in inside):
            found[_part(path, module, model.config.is_encoder_decoder)].append(module)
    return dict(found)


def _part(path: str, module: nn.Module, is_encoder_decoder: bool) -> str:
    if CROSS_ATTENTION.search(f"{path.rsplit('.', 2)[-2:]}{type(module).__name__}"):
        return "cross"
    if is_encoder_decoder:
        return next((name for name in path.split(".") if name in ("encoder", "decoder")), "self")
    return "self"


def _is_attention(module: nn.Module) -> bool:
    inner = (type(child).__name__ for child in module.modules() if child is not module)
    return type(module).__name__.endswith("Attention") and not any(name.endswith("Attention") for name in inner)


def _text_config(model: PreTrainedModel) -> PretrainedConfig | None:
    """The config of the language part of a multimodal model; None where there is nothing to tell apart."""
    if model.config.is_encoder_decoder:
        return None
    text = model.config.get_text_config()
    return None if text is model.config else text


def _reason_to_refuse(model: PreTrainedModel, parts: dict[str, list[nn.Module]]) -> str | None:
    config: Any = _text_config(model) or model.config
    other = sorted(set(getattr(config, "layer_types", None) or ()) - PER_TOKEN_LAYERS)
    if other:
        return f"layers of type {other} have no keys and values per token"
    layers = [module for part in parts.values() for module in part]
    if not layers:
        return "no attention layers, so no keys and values per token"
    if getattr(config, "num_kv_shared_layers", 0) or any(getattr(layer, "is_kv_shared_layer", 0) for layer in layers):
        return f"{getattr(config, 'num_kv_shared_layers', 'some')} layers share the keys and values of other layers"
    if getattr(config, "kv_lora_rank", None):
        return "latent attention (MLA) compresses keys and values and rotates only a shared part of the key"
    outside = {type(layer).__name__ for layer in layers if not _uses_interface(layer)}
    if outside:
        return f"{sorted(outside)} do not use transformers' attention interface"
    if "self" in parts and len(parts["self"]) != config.num_hidden_layers:
        return f"{len(parts['self'])} of {config.num_hidden_layers} layers have keys and values per token"
    return None


def _uses_interface(layer: nn.Module) -> bool:
    return hasattr(sys.modules[type(layer).__module__], "ALL_ATTENTION_FUNCTIONS")
