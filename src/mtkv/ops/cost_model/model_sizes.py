"""How large a model is, without reading its weights: parameters, layers and the width of its KV.

Parameters are counted from the headers of the safetensors files. A model of which only the config is here is built by transformers
on the meta device, which takes seconds and no memory. The size of a model that is not here at all is unknown.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkv.models.paths import cached_commit, cached_snapshot, gguf_path, hub_folder, pocket_folder

if TYPE_CHECKING:
    from mtkv.config.models import ModelConfig

# Config keys for the same thing in different model families; the first that is there counts.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
HEADS = ("num_key_value_heads", "num_attention_heads", "n_head", "num_heads")
QUERY_HEADS = ("num_attention_heads", "n_head", "num_heads")
HEAD_DIM = ("head_dim", "d_kv")
HEADED = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
HIDDEN = ("hidden_size", "n_embd", "d_model")


@dataclass(frozen=True)
class ModelSize:
    """`parameters`: of all weights, tied ones once; `kv_width`: `kv_heads` times the width of a head; `hidden`: width of a layer;
    `vocabulary`: number of tokens (both 1 where the config does not say).
    """

    parameters: int
    layers: int
    kv_heads: int
    kv_width: int
    hidden: int = 1
    vocabulary: int = 1


def model_size(config: "ModelConfig") -> ModelSize | None:
    """The size of a model; None when neither its weights nor its config are on this machine."""
    folder = local_folder(config)
    if folder is None or not (folder / "config.json").is_file():
        return None
    return folder_size(folder, config.trust_remote_code, tuple(config.layers))


@cache
def folder_size(folder: Path, trust_remote_code: bool = False, kept: tuple[int, ...] = ()) -> ModelSize | None:
    """The size of the model in a Hugging Face folder, or where `kept` names some of its layers of a model of those; None for a config that
    says no number of layers or heads."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = settings.get("text_config") or settings
    layers, heads, queries = (_first(text, names) for names in (LAYERS, HEADS, QUERY_HEADS))
    head_dim = _first(text, HEAD_DIM) or (_first(text, HIDDEN) // queries if queries else 0)
    parameters = stored_parameters(folder, kept) or (built_parameters(folder, trust_remote_code, kept) if layers else 0)
    if not (layers and heads and head_dim and parameters):
        return None
    hidden, vocabulary = (_first(text, names) or 1 for names in (HIDDEN, ("vocab_size",)))
    return ModelSize(parameters, len(kept) or layers, heads, heads * head_dim, hidden, vocabulary)


def is_kept(name: str, kept: tuple[int, ...]) -> bool:
    """Whether a weight is of one of the layers `kept`, or of none; all are where `kept` is empty. A weight's layer is the first number in
    its name."""
    layer = next((int(part) for part in name.split(".") if part.isdecimal()), None)
    return not kept or layer is None or layer in kept


def stored_parameters(folder: Path, kept: tuple[int, ...] = ()) -> int:
    """Numbers in the safetensors files of a folder, by their headers (u64 length, then JSON); 0 without such files."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(*struct.unpack("<Q", file.read(8))))
        shapes |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return sum(prod(shape) for name, shape in shapes.items() if is_kept(name, kept))


@cache
def built_parameters(folder: Path, trust_remote_code: bool = False, kept: tuple[int, ...] = ()) -> int:
    """Parameters of the model that a folder's config describes, built on the meta device; 0 where transformers cannot build it."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        headed = any(name.endswith(HEADED) for name in settings.architectures or HEADED)
        causal = headed and type(settings) in AutoModelForCausalLM._model_mapping
        auto: Any = AutoModelForCausalLM if causal else AutoModel
        with torch.device("meta"):
            model = auto.from_config(settings, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, ImportError, KeyError):
        return 0
    model.tie_weights()
    return sum(weight.numel() for name, weight in model.named_parameters() if is_kept(name, kept))


def _first(settings: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next((int(settings[name]) for name in names if settings.get(name)), 0)


def local_folder(config: "ModelConfig") -> Path | None:
    if config.parts:
        return local_folder(config.parts[0])
    if config.source == "pocket":
        return pocket_folder(config.name)
    if config.source == "path":
        return Path(config.name)
    if config.source == "run":
        return config.run_folder / "model"
    if config.source == "gguf":
        return gguf_path(config).parent
    fetched = hub_folder(config)
    if (fetched / "config.json").is_file():
        return fetched
    commit = cached_commit(config)
    return cached_snapshot(config, commit) if commit else None
