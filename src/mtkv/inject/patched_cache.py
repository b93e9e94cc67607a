"""The two passes of a student that is injected into: it reads a prompt but for its last token, the cache is corrected, the rest is read.

`read_prompts` is the first pass for whoever has laid out a batch, `read_answers` both for rows with their answers. The corrections are of
K before RoPE; RoPE is linear, so they are rotated and added to what the cache holds.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from mtkv.inject.fuser import KVFuser
from mtkv.kv.capture import KVCapture
from mtkv.kv.extract import packed_kv_at
from mtkv.kv.rotary import rotate
from mtkv.latent.model.generation import left_aligned
from mtkv.latent.model.prefix_cache import since
from mtkv.models.cross_entropy import IGNORED_LABEL, logits_only_at


@dataclass(frozen=True)
class TeacherTokens:
    """The teachers' KV at tokens of a batch: token n is in row `sample[n]` and `column[n]` of the pass; `context` is the router's."""

    sample: Int[Tensor, " tokens"]
    column: Int[Tensor, " tokens"]
    kv: list[Float[Tensor, "tokens layers 2 teacher_width"]]
    context: dict[str, Tensor]


def read_prompts(
    model: PreTrainedModel, fuser: KVFuser, teachers: TeacherTokens, **inputs: Any
) -> Float[Tensor, "batch teachers *layers"]:
    """Let the model read `inputs` (input_ids `[batch, columns]`, attention_mask, past_key_values: an empty cache, …), then correct the K
    and V that the cache holds, in place. Returns the routing weights. Gradients reach the fuser, and the model where it is trained."""
    trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in model.parameters())
    with KVCapture(model) as capture, torch.set_grad_enabled(trained):
        model.base_model(**inputs, use_cache=True)
        own = packed_kv_at(capture, range(len(capture.layers)), teachers.sample, teachers.column)
    shape = inputs["input_ids"].shape
    corrections, weights = fuser(own, teachers.sample, teachers.kv, shape[0], **teachers.context)
    held: list[Any] = inputs["past_key_values"].layers
    for number, (module, layer) in enumerate(zip(capture.layers, held, strict=True)):
        placed = corrections.new_zeros(*shape, *corrections.shape[2:])
        placed = placed.index_put((teachers.sample, teachers.column), corrections[:, number])
        key, value = placed.unflatten(-1, (layer.keys.shape[1], -1)).permute(2, 0, 3, 1, 4)
        rotary = capture.rotary(number)
        key = key if rotary is None else rotate(key, *rotary, module)
        layer.keys, layer.values = layer.keys + key.to(layer.keys), layer.values + value.to(layer.values)
    return weights


def read_answers(
    model: PreTrainedModel,
    fuser: KVFuser,
    input_ids: Int[Tensor, "batch time"],
    labels: Int[Tensor, "batch time"],
    teachers: TeacherTokens,
) -> tuple[Float[Tensor, "targets vocabulary"], Int[Tensor, " targets"], Float[Tensor, "batch teachers *layers"]]:
    """Logits that predict the labels other than −100, these labels, and the routing weights. Rows are padded on the right; each begins with
    a prompt, which ends where its labels begin. `teachers.column` counts in the row."""
    read = ((labels != IGNORED_LABEL).long().argmax(1) - 1).clamp(min=0)  # all of the prompt but its last token
    most = int(read.max())
    ids, seen = left_aligned(input_ids[:, :most], torch.arange(most, device=read.device) < read[:, None])
    column = teachers.column + (most - read)[teachers.sample]
    cache = (
        DynamicCache()
    )  # without the model's config: layers with a sliding window keep all, and the mask hides what they do not see
    weights = read_prompts(
        model,
        fuser,
        TeacherTokens(teachers.sample, column, teachers.kv, teachers.context),
        input_ids=ids,
        attention_mask=seen,
        past_key_values=cache,
        **_at(model, (seen.cumsum(1) - 1).clamp(min=0)),
    )
    ids, following = (
        since(input_ids, read, 0),
        F.pad(since(labels, read, IGNORED_LABEL)[:, 1:], (0, 1), value=IGNORED_LABEL),
    )
    keep = following != IGNORED_LABEL
    with logits_only_at(model, keep):
        logits = model(
            input_ids=ids,
            attention_mask=F.pad(seen, (0, ids.shape[1]), value=1),  # padding on the right is seen by padding alone
            past_key_values=cache,
            use_cache=True,
            **_at(model, read[:, None] + torch.arange(ids.shape[1], device=ids.device)),
        ).logits
    return logits, following[keep], weights


def _at(model: PreTrainedModel, positions: Int[Tensor, "batch time"]) -> dict[str, Tensor]:
    """`position_ids` for models that take them."""
    takes = "position_ids" in inspect.signature(model.base_model.forward).parameters
    return {"position_ids": positions} if takes else {}
