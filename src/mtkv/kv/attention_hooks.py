"""Intercept what a model's attention layers hand to the attention function: the common base of capture and injection.

transformers looks the attention function up by the name in the config. Inside the `with` block that name stands for a function that
first passes query, K and V to the interceptions of that layer and then calls the model's own attention function. The attention layers are
found by `attention_layers`, which refuses by name those without per-token keys and values. A model has one or more *parts*: a decoder or an
encoder alone has one; an encoder–decoder has `encoder`, `decoder` and `cross`.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mtkv.kv.rotary import Rotary, RotaryWatch, has_rotary_function

PREFIX = "mtkv|"
DETACHED = (
    "gradient checkpointing with use_reentrant=True runs the layers without gradient, so a loss on K and V would train "
    "nothing; call gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})"
)
_interceptions: "WeakKeyDictionary[nn.Module, list[AttentionInterception]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Attended:
    """What one layer hands to its attention function; K and Q after RoPE. `rotary`: the (cos, sin) they were rotated by, None without."""

    module: nn.Module
    query: Float[Tensor, "batch heads time head_dim"]
    key: Float[Tensor, "batch kv_heads key_time head_dim"]
    value: Float[Tensor, "batch kv_heads key_time head_dim"]
    rotary: Rotary | None
    scaling: float


class AttentionInterception:
    """Context manager: `attend` is called for every attention of one part of the model and returns the K and V to use.

    Raises what `attention_layers` raises, when it is made; RuntimeError in a forward that re-entrant gradient checkpointing
    detaches; NotImplementedError in a forward with a static cache or an unknown rotary function.
    """

    def __init__(self, model: PreTrainedModel, part: str | None = None) -> None:
        self.model = model
        self.layers = attention_layers(model, part)
        self._index = {id(layer): index for index, layer in enumerate(self.layers)}
        self._watch = RotaryWatch(self.layers)
        self._wants_gradient = False
        self._open = ExitStack()

    def attend(self, layer: int, attended: Attended) -> tuple[Tensor, Tensor]:
        """K and V that the layer `layer` shall attend to: those of `attended`, or others."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            opening.enter_context(_intercepted_implementation(self.model))
            opening.enter_context(self._watch)
            for module in common_ancestors(self.model, self.layers):
                opening.callback(module.register_forward_pre_hook(self._note_gradient).remove)
            for layer in self.layers:
                opening.callback(layer.register_forward_pre_hook(self._before_layer, with_kwargs=True).remove)
                _interceptions.setdefault(layer, []).append(self)
                opening.callback(_interceptions[layer].remove, self)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def before_layer(self, cache: Cache | None) -> None:
        """Called before each attention layer, with the cache passed to it. Raises NotImplementedError for a static cache."""
        if cache is not None and cache.is_compileable:
            raise NotImplementedError(f"{type(cache).__name__}: K and V of unused positions; use DynamicCache or none")

    def show(self, attended: Attended) -> tuple[Tensor, Tensor]:
        """Called by the intercepting attention function: passes `attended` to `attend` with the layer's number."""
        name = type(attended.module).__name__
        if self._wants_gradient and not torch.is_grad_enabled():
            raise RuntimeError(f"{name}: {DETACHED}")
        if isinstance(self._watch.last, str):
            raise NotImplementedError(f"{name}: rotates its keys with {self._watch.last}, which has no known inverse")
        return self.attend(self._index[id(attended.module)], Attended(**vars(attended) | {"rotary": self._watch.last}))

    def _note_gradient(self, _module: nn.Module, _args: tuple[Any, ...]) -> None:
        self._wants_gradient = torch.is_grad_enabled()

    def _before_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._watch.last = None
        if kwargs.get("position_embeddings") is not None and not has_rotary_function(module):
            raise NotImplementedError(f"{type(module).__name__}: rotary position embeddings of an unknown form")
        self.before_layer(next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None))


@contextmanager
def _intercepted_implementation(model: PreTrainedModel) -> Iterator[None]:
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    owned = [config for config in configs.values() if isinstance(config, PretrainedConfig)]
    before = [config._attn_implementation or "eager" for config in owned]
    for config, name in zip(owned, before, strict=True):
        _set_implementation(config, name if name.startswith(PREFIX) else _registered(name))
    try:
        yield
    finally:
        for config, name in zip(owned, before, strict=True):
            _set_implementation(config, name)


def _set_implementation(config: PretrainedConfig, name: str) -> None:
    config._attn_implementation = {"": name}  # a dict leaves the sub-configs alone


def _registered(original: str) -> str:
    """Name of the intercepting twin of an attention implementation, with the same attention masks."""
    name = PREFIX + original
    AttentionInterface.register(name, _intercepting(original))
    masks = AttentionMaskInterface()
    if original in masks:
        AttentionMaskInterface.register(name, masks[original])
    return name


def _intercepting(original: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        for interception in _interceptions.get(module, ()):
            key, value = interception.show(Attended(module, query, key, value, None, scaling))
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", sdpa_attention_forward)
        return AttentionInterface().get_interface(original, own)(
            module, query, key, value, attention_mask, *args, **kwargs
        )

    return attention


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
