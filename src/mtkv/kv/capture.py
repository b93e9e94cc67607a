"""Record the keys before RoPE and the values of every layer of a transformers model during an ordinary forward.

In: a model that uses transformers' attention interface. Out: per layer K and V `[batch, kv_heads, time, head_dim]`, with
their gradients when the forward has them. Keys are un-rotated with the model's own rotary function: a rotation by the
negative angle is the inverse of RoPE (method.md §1; RoFormer, arXiv 2104.09864, eq. 16).
"""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "mtkv_capture"
_recorders: "WeakKeyDictionary[nn.Module, KVCapture]" = WeakKeyDictionary()


class KVCapture:
    """Context manager: what the model's attention layers see inside the block is recorded, its outputs stay the same.

    Only the first pass of a layer is recorded until `clear()`, so the recomputation of gradient checkpointing changes nothing.
    Call the model with `use_cache=False`. Raises NotImplementedError for a model outside the attention interface.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._attentions = [module for module in model.modules() if _is_attention(module)]
        self._seen: dict[int, tuple[nn.Module, Tensor, Tensor]] = {}
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._implementation = self.model.config._attn_implementation
        self.model.config._attn_implementation = IMPLEMENTATION
        for attention in self._attentions:
            _recorders[attention] = self
            self._hooks.append(attention.register_forward_pre_hook(self._record_rotary, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.model.config._attn_implementation = self._implementation
        for attention in self._attentions:
            _recorders.pop(attention, None)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def clear(self) -> None:
        """Forget what was recorded, before the next forward."""
        self._seen.clear()
        self._rotary.clear()

    def keys(self) -> list[Float[Tensor, "batch kv_heads time head_dim"]]:
        """K before RoPE (after `k_norm` where the model has one), one tensor per layer."""
        return [self._unrotated(layer) for layer in self._layers()]

    def values(self) -> list[Float[Tensor, "batch kv_heads time head_dim"]]:
        """V, one tensor per layer."""
        return [self._seen[layer][2] for layer in self._layers()]

    def record(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        """Called by the attention function with K after RoPE and V `[batch, kv_heads, time, head_dim]`."""
        self._seen.setdefault(_layer_index(module), (module, key, value))

    def _layers(self) -> range:
        expected = self.model.config.get_text_config().num_hidden_layers
        if sorted(self._seen) != list(range(expected)):
            raise NotImplementedError(
                f"{type(self.model).__name__}: recorded K and V of layers {sorted(self._seen)}, expected all {expected}; "
                "the model does not pass per-token keys and values through transformers' attention interface"
            )
        return range(expected)

    def _unrotated(self, layer: int) -> Tensor:
        module, key, _ = self._seen[layer]
        if layer not in self._rotary:
            return key
        cos, sin = self._rotary[layer]
        return unrotate(key, cos, sin, _rotary_function(module))

    def _record_rotary(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        embeddings = kwargs.get("position_embeddings")
        if embeddings is None:
            embeddings = next((value for value in args if isinstance(value, tuple) and len(value) == 2), None)
        if embeddings is not None:
            self._rotary.setdefault(_layer_index(module), embeddings)


def unrotate(
    key: Float[Tensor, "batch kv_heads time head_dim"],
    cos: Float[Tensor, "batch time rotary_dim"],
    sin: Float[Tensor, "batch time rotary_dim"],
    rotate: Callable[..., tuple[Tensor, Tensor]],
) -> Float[Tensor, "batch kv_heads time head_dim"]:
    """Undo `rotate(query, key, cos, sin)`: the same function with −sin, divided by attention_scaling² = cos² + sin²."""
    scaling = cos.square() + sin.square()
    return rotate(key[:, :1], key, cos / scaling, -sin / scaling)[1]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    if (recorder := _recorders.get(module)) is not None:
        recorder.record(module, key, value)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _is_attention(module: nn.Module) -> bool:
    return getattr(module, "layer_idx", None) is not None and type(module).__name__.endswith("Attention")


def _layer_index(module: nn.Module) -> int:
    return int(module.layer_idx)  # type: ignore[arg-type]


def _rotary_function(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    modeling = sys.modules[type(module).__module__]
    if not hasattr(modeling, "apply_rotary_pos_emb"):
        raise NotImplementedError(f"{type(module).__name__}: rotary position embeddings of an unknown form")
    return modeling.apply_rotary_pos_emb


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
