"""Let a model attend to keys and values from outside, at chosen positions: the forward behind `objective: injected_ce`.

In: KV before RoPE in the model's own space, packed as in the store. Out: an ordinary forward whose loss has a gradient in that KV.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, PreTrainedModel

from mtkv.kv.attention_hooks import Attended, AttentionInterception
from mtkv.kv.rotary import rotate
from mtkv.kv.shards import KEY, VALUE


class KVInjection(AttentionInterception):
    """Context manager: where `mask` is true, every layer attends to the given K and V instead of its own.

    `kv [batch, time, layers, 2, width]` holds K before RoPE and V, heads flattened; K is rotated by the model's own RoPE for its
    position. Raises ValueError for shapes that do not fit the model and for a forward with a cache, which would keep the
    replaced K and V; RuntimeError with gradient checkpointing, whose recomputation would run without the injection.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kv: Float[Tensor, "batch time layers 2 width"],
        mask: Bool[Tensor, "batch time"],
        part: str | None = None,
    ) -> None:
        super().__init__(model, part)
        if kv.ndim != 5 or kv.shape[2:4] != (len(self.layers), 2) or mask.shape != kv.shape[:2]:
            raise ValueError(
                f"{type(model).__name__}: kv {tuple(kv.shape)} and mask {tuple(mask.shape)} are not "
                f"[batch, time, {len(self.layers)}, 2, width] and [batch, time]"
            )
        if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise RuntimeError(
                f"{type(model).__name__}: gradient checkpointing recomputes the layers after the block, without the injected "
                "KV; call gradient_checkpointing_disable() first"
            )
        self.kv = kv
        self.mask = mask.bool()

    def before_layer(self, cache: Cache | None) -> None:
        """Raises ValueError for a forward with a cache."""
        if cache is not None:
            raise ValueError("injected K and V do not enter the cache: call the model with use_cache=False")

    def attend(self, layer: int, attended: Attended) -> tuple[Tensor, Tensor]:
        """The layer's K and V with the masked positions replaced."""
        key = self._heads(layer, KEY, attended.key)
        if attended.rotary is not None:
            key = rotate(key, *attended.rotary, attended.module)
        value = self._heads(layer, VALUE, attended.value)
        chosen = self.mask[:, None, :, None].to(key.device)
        return key.where(chosen, attended.key), value.where(chosen, attended.value)

    def _heads(
        self, layer: int, kind: int, own: Float[Tensor, "batch kv_heads time head_dim"]
    ) -> Float[Tensor, "batch kv_heads time head_dim"]:
        given = self.kv[:, :, layer, kind]
        wanted = (own.shape[0], own.shape[2], own.shape[1] * own.shape[3])
        if given.shape != wanted:
            raise ValueError(f"layer {layer}: kv of [batch, time, width] {tuple(given.shape)}, the model's is {wanted}")
        return given.unflatten(-1, (own.shape[1], own.shape[3])).transpose(1, 2).to(own)


def scattered(
    kv: Float[Tensor, "tokens layers 2 width"],
    sample: Int[Tensor, " tokens"],
    position: Int[Tensor, " tokens"],
    like: Tensor,
) -> tuple[Float[Tensor, "batch time layers 2 width"], Bool[Tensor, "batch time"]]:
    """KV of single tokens put at their place (`sample[n]`, `position[n]`) in a batch of the shape of `like [batch, time]`, with zeros
    elsewhere, and the mask of these places: the arguments of `KVInjection`."""
    mask = torch.zeros_like(like, dtype=torch.bool)
    mask[sample, position] = True
    return kv.new_zeros(*like.shape, *kv.shape[1:]).index_put((sample, position), kv), mask
