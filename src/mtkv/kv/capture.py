"""Record the keys before RoPE and the values of every layer of a transformers model during an ordinary forward.

In: a model that uses transformers' attention interface. Out: per layer K and V `[batch, kv_heads, time, head_dim]`, with
their gradients when the forward has them. Keys are un-rotated with the model's own rotary function (method.md §1).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtkv.kv.attention_hooks import Attended, AttentionInterception
from mtkv.kv.rotary import Rotary, unrotate
from mtkv.models.device_placement import input_device

POSITIONS = 16
SAME = 0.03  # tolerance as a share of a key's length: bfloat16 rotations differ by 0.004, trained norms behind RoPE by 0.15 or more
TINY = 1e-12  # in place of the length of keys that are all zero
_checked: "WeakSet[nn.Module]" = WeakSet()


class KVCapture(AttentionInterception):
    """Context manager: records K and V of every attention layer inside the block; the model's outputs stay the same.

    Only the first pass of a layer is recorded until `clear()`, so the recomputation of gradient checkpointing changes nothing.
    With a cache that already holds tokens, K and V of the new tokens are recorded. `part` chooses `encoder` (default),
    `decoder` (self-attention) or `cross` of an encoder–decoder. `queries=True` keeps the queries too. Raises, when it is made or
    in the forward, what `AttentionInterception` raises.
    """

    def __init__(self, model: PreTrainedModel, part: str | None = None, *, queries: bool = False) -> None:
        super().__init__(model, part)
        self._keep_queries = queries
        self._is_cross = part == "cross"
        self._seen: dict[int, Attended] = {}  # of a layer's first pass; with no query unless these are kept

    def clear(self) -> None:
        """Forget what was recorded; call it before the next forward."""
        self._seen.clear()

    def keys(self, layers: Sequence[int] | None = None) -> list[Float[Tensor, "batch kv_heads time head_dim"]]:
        """K before RoPE (after `k_norm` where the model has one), one tensor for each of `layers`; None: all."""
        return [self._unrotated(self._seen[layer].key, layer) for layer in self._chosen(layers)]

    def values(self, layers: Sequence[int] | None = None) -> list[Float[Tensor, "batch kv_heads time head_dim"]]:
        """V, one tensor for each of `layers`; None: all."""
        return [self._seen[layer].value for layer in self._chosen(layers)]

    def queries(self) -> list[Float[Tensor, "batch heads time head_dim"]]:
        """Q before RoPE, one tensor per layer; attention scores are Q·Kᵀ·`scaling(layer)`. Raises ValueError unless kept."""
        if not self._keep_queries:
            raise ValueError("queries are not kept: use KVCapture(model, queries=True)")
        return [self._unrotated(self._seen[layer].query, layer) for layer in self._recorded()]

    def rotary(self, layer: int) -> Rotary | None:
        """(cos, sin) `[batch or 1, time, rotary_dim]` that the layer rotated its keys by; None when it did not rotate them."""
        self._recorded()
        return self._seen[layer].rotary

    def scaling(self, layer: int) -> float:
        """What the layer multiplies Q·Kᵀ by (not always 1/√head_dim: Gemma 3, T5, OPT)."""
        self._recorded()
        return self._seen[layer].scaling

    def attend(self, layer: int, attended: Attended) -> tuple[Tensor, Tensor]:
        """Record K and V of the layer's first pass and return them unchanged."""
        if layer not in self._seen:
            new = slice(None) if self._is_cross else slice(-attended.query.shape[2], None)
            query = attended.query if self._keep_queries else attended.query.new_empty(0)
            self._seen[layer] = replace(
                attended, query=query, key=attended.key[:, :, new], value=attended.value[:, :, new]
            )
        return attended.key, attended.value

    def _chosen(self, layers: Sequence[int] | None) -> Sequence[int]:
        recorded = self._recorded()
        return recorded if layers is None else layers

    def _recorded(self) -> range:
        if not self._seen:
            raise RuntimeError(f"{type(self.model).__name__}: nothing recorded; run this part inside the block first")
        if len(self._seen) != len(self.layers):
            raise NotImplementedError(
                f"{type(self.model).__name__}: recorded K and V of layers {sorted(self._seen)}, expected all "
                f"{len(self.layers)}; the model does not run every layer through transformers' attention interface"
            )
        return range(len(self.layers))

    def _unrotated(self, x: Tensor, layer: int) -> Tensor:
        rotary, module = self._seen[layer].rotary, self._seen[layer].module
        return x if rotary is None else unrotate(x, *rotary, module)


def read(model: PreTrainedModel, **inputs: Tensor) -> Any:
    """One forward of the part that is captured by default: the encoder of an encoder–decoder, else the model without its head."""
    if model.config.is_encoder_decoder:
        return model.get_encoder()(**inputs)
    return model.base_model(**inputs, use_cache=False)


@torch.no_grad()
def check_keys(model: PreTrainedModel) -> None:
    """Check, once per model, that un-rotated keys do not depend on the position. Raises NotImplementedError where they do.

    Every layer is given one and the same hidden state at every position (learned positions are part of that state and do not count), so
    its keys before RoPE must be equal. They are not in a model that changes keys behind RoPE (HunYuan normalises them) or rotates them
    by a function that `RotaryWatch` does not see: un-rotating would not give the keys before RoPE.
    """
    if model in _checked:
        return
    training = model.training
    token = model.config.get_text_config().vocab_size // 2
    with ExitStack() as opened, KVCapture(model.eval()) as capture:
        for layer in capture.layers:
            opened.callback(layer.register_forward_pre_hook(_one_state, with_kwargs=True).remove)
        read(model, input_ids=torch.full((1, POSITIONS), token, device=input_device(model)))
        model.train(training)
        for number, key in enumerate(capture.keys()):
            moved, length = (x.float().norm(dim=-1).max() for x in (key - key[:, :, :1], key))
            off = float(moved / length.clamp_min(TINY))
            if not off < SAME:
                raise NotImplementedError(
                    f"{type(model).__name__}: in layer {number} the keys of one hidden state differ by {off:.0%} between positions once "
                    "RoPE is taken back: they are changed behind it, so they cannot be compared; use the model without its KV"
                )
    _checked.add(model)


def _one_state(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """A layer's arguments with the hidden state `[batch, time, hidden]` of the first position at every position."""
    hidden = args[0] if args else kwargs["hidden_states"]
    first = hidden[:, :1].expand_as(hidden)

    def swapped(value: Any) -> Any:
        return first if value is hidden else value

    return tuple(map(swapped, args)), {name: swapped(value) for name, value in kwargs.items()}
