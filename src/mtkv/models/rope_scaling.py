"""Stretch the context of a model with rotary positions when it is loaded (method.md §11).

In: a transformers config. Out: the same config with other `rope_parameters`, which the model's own rotary code obeys.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Embedding
from transformers import MODEL_MAPPING, AutoModel, PretrainedConfig

from mtkv.config.models import RopeScaling

Rope = dict[str, Any]


def ntk_base(base: float, dim: int, factor: float) -> float:
    """base·s^(d/(d−2)): the slowest channel is stretched by s, the fastest not at all (bloc97 2023)."""
    return float(base * factor ** (dim / (dim - 2)))


def two_thirds_base(base: float, dim: int, factor: float) -> float:
    """base·s^(2/3): the original design's exponent, which depends on no width and stretches the slowest channel by less than s."""
    return float(base * factor ** (2 / 3))


# (base, width of a head, factor s) → RoPE parameters, the same whatever the length of a text
SCALINGS: dict[str, Callable[[float, int, float], Rope]] = {
    "ntk": lambda base, dim, s: {"rope_theta": ntk_base(base, dim, s)},
    "ntk_two_thirds": lambda base, dim, s: {"rope_theta": two_thirds_base(base, dim, s)},
    # All positions divided by s (Chen et al. 2023, arXiv 2306.15595).
    "linear": lambda base, dim, s: {"rope_type": "linear", "factor": s},
    # The base that dynamic NTK (emozilla 2023) reaches at s times the trained length, used at every length, as in vLLM. In transformers
    # it grows with the longest row of a batch, and a row's KV would depend on its neighbours.
    "dynamic": lambda base, dim, s: {"rope_theta": ntk_base(base, dim, s * s - (s - 1))},
}


def scale_rope(settings: PretrainedConfig, scaling: RopeScaling) -> None:
    """Change `settings` in place: `rope_parameters` of every layer type, and a context `factor` times as long.

    Raises ValueError for a model without RoPE or with RoPE that is scaled already.
    """
    text = settings.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    if not rope:
        raise ValueError(f"rope_scaling: a {settings.model_type} has no rotary positions to scale; remove the field")
    nested = all(isinstance(part, dict) for part in rope.values())
    parts = rope if nested else {"": rope}
    kinds = {part.get("rope_type", "default") for part in parts.values()}
    if kinds != {"default"}:
        raise ValueError(
            f"rope_scaling: this model's RoPE is already scaled ({', '.join(sorted(kinds))}); remove the field"
        )
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    scaled = {}
    for name, part in parts.items():
        dim = int(head_dim * part.get("partial_rotary_factor", 1.0))
        scaled[name] = part | SCALINGS[scaling.method](part["rope_theta"], dim, scaling.factor)
    text.rope_parameters = scaled if nested else scaled[""]
    text.max_position_embeddings = int(text.max_position_embeddings * scaling.factor)


def context_length(settings: PretrainedConfig) -> int | None:
    """Longest row that the model reads independently of the other rows in its batch, in tokens; None when its config states no length.

    `longrope` rotates all rows of a batch by other angles once one exceeds the original context length, `dynamic` once one exceeds
    `max_position_embeddings`: for such models the limit is that length.
    """
    text = settings.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    parts = [part for part in (rope, *rope.values()) if isinstance(part, dict) and part.get("rope_type") == "longrope"]
    lengths = [part.get("original_max_position_embeddings") for part in parts]
    stated = getattr(text, "max_position_embeddings", None)
    learned = [] if rope or stated is None else _learned_positions(text)
    return min([length for length in (*lengths, *learned, stated) if length is not None], default=None)


def _learned_positions(settings: PretrainedConfig) -> list[int]:
    """Usable lengths of the model's learned position embeddings that have a padding index: models like RoBERTa count positions from
    behind it, so of 514 rows 512 can be used. The model is built on the meta device, without memory for weights."""
    if type(settings) not in MODEL_MAPPING:
        return []
    with torch.device("meta"):
        model = AutoModel.from_config(copy.deepcopy(settings))
    tables = [module for name, module in model.named_modules() if "position" in name and isinstance(module, Embedding)]
    return [table.num_embeddings - table.padding_idx - 1 for table in tables if table.padding_idx is not None]
