"""The student as its own teacher (KaVa): its KV of the chain, selected by its own attention and keys, in a pass that reads the chain.

It changes with every step, so its mean and spread are those of the step's rows, where another teacher's come from calibration rows
(`measure`).
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mtkv.align.closed_form_maps import FrozenMap, KVMap
from mtkv.kv.capture import KVCapture
from mtkv.kv.extract import packed_kv
from mtkv.kv.importance import AskedAttention, window_mask
from mtkv.latent.training.selection import gather_slots, select_slots
from mtkv.training.step_statistics import mean_of_step

if TYPE_CHECKING:
    from mtkv.config.kv import SelectConfig

SMALLEST_SPREAD = 1e-6


class SelfTeacherReading:
    """Context manager around a forward of the chain's rows; `at` then gives the KV at the slots, without gradient.

    `chain`: tokens to select from; `answer`: those whose attention says which of them matter. For `rkv_decode` it is that of the chain's
    last tokens to those before; its cache is the chain alone, without the question that R-KV has before it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: "SelectConfig",
        chain: Bool[Tensor, "batch time"],
        answer: Bool[Tensor, "batch time"],
    ) -> None:
        asking, past = answer, None
        if config.method == "rkv_decode":
            asking = window_mask(chain)
            past = chain & ~asking
        self.config, self.chain, self.done = config, chain, False
        self.capture = KVCapture(model)
        self.attention = AskedAttention(model, asking, past=past) if config.needs_attention else None

    def __enter__(self) -> "SelfTeacherReading":
        self.capture.__enter__()
        if self.attention:
            self.attention.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.done = True
        if self.attention:
            self.attention.__exit__(*error)  # type: ignore[arg-type]
        self.capture.__exit__(*error)  # type: ignore[arg-type]

    @torch.no_grad()
    def at(
        self,
        sample: Int[Tensor, " tokens"],
        ordinal: Int[Tensor, " tokens"],
        count: Int[Tensor, " batch"],
        seeds: Int[Tensor, " batch"],
    ) -> Float[Tensor, "tokens layers 2 width"]:
        """KV of the `ordinal`-th of the `count` tokens that each layer and head selects of row `sample`."""
        return gather_slots(*self.selected(count, seeds), sample, ordinal).float()

    @torch.no_grad()
    def selected(
        self, count: Int[Tensor, " batch"], seeds: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch time layers 2 width"], Int[Tensor, "batch slots layers kv_heads"]]:
        """KV of the rows, and the tokens of the chain that each layer and head selects."""
        heads = self.capture.keys([0])[0].shape[1]
        kv = packed_kv(self.capture, range(len(self.capture.layers)))
        importance = self.attention.importance if self.attention else None
        return kv, select_slots(self.config, kv, heads, self.chain, count, importance, seeds)


def own_map(layers: int, width: int) -> KVMap:
    """The map of a teacher that is the student: the identity. Means are 0 and deviations 1 until `measure` sets them."""
    mean, scale = torch.zeros(layers, 2, width), torch.ones(layers, 2)
    return KVMap(
        weight=torch.eye(width).expand(layers, 2, width, width).clone(),
        x_mean=mean,
        y_mean=mean.clone(),
        x_scale=scale,
        y_scale=scale.clone(),
        scale=scale.clone(),
        channel_std=torch.ones(layers, 2, width),
        x_channel_std=torch.ones(layers, 2, width),
        layer_weights=torch.eye(layers),
    )


@torch.no_grad()
def measure(own: FrozenMap, kv: Float[Tensor, "tokens layers 2 width"]) -> None:
    """Set the map's means (per channel) and deviations (per layer and kind, and per channel) to those of the step's tokens.

    With fewer than two tokens in the step they stay as they are.
    """
    exact = kv.double()
    mean, count = mean_of_step("own", exact, (0,))
    squares, _ = mean_of_step("own, squared", exact.square(), (0,))
    if count < 2:
        return
    channel = (squares - mean.square()).clamp_min(0).sqrt()
    spread = channel.square().mean(-1).sqrt().clamp_min(SMALLEST_SPREAD)
    for name, value in {"x_mean": mean, "y_mean": mean}.items():
        getattr(own, name).copy_(value)
    for name in ("x_scale", "y_scale", "scale"):
        getattr(own, name).copy_(spread)
    for name in ("channel_std", "x_channel_std"):
        getattr(own, name).copy_(channel / spread[..., None])
