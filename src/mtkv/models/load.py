"""Load a model and its tokenizer from where the config says: a pocket model of this package or a folder on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mtkv.models.digest import pocket_folder

if TYPE_CHECKING:
    from mtkv.config.models import ModelConfig

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FOLDERS: dict[str, Callable[["ModelConfig"], Path]] = {
    "pocket": lambda config: pocket_folder(config.name),
    "path": lambda config: Path(config.name),
}


def model_folder(config: "ModelConfig") -> Path:
    """The Hugging Face folder of a model. Raises FileNotFoundError naming the field when there is none."""
    folder = FOLDERS[config.source](config)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model {config.name!r}: no config.json in {folder}")
    return folder


def load_model(config: "ModelConfig") -> PreTrainedModel:
    """The model in the config's dtype, in eval mode, on the GPU when there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        model_folder(config), dtype=DTYPES[config.dtype], trust_remote_code=config.trust_remote_code
    )
    return model.to(torch.device(device)).eval()  # type: ignore[arg-type]


def load_tokenizer(config: "ModelConfig") -> PreTrainedTokenizerBase:
    """The model's own tokenizer. Raises ValueError for a slow one, which reports no offsets, or one without pad or eos."""
    folder = model_folder(config)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    if not tokenizer.is_fast:
        raise ValueError(
            f"model {config.name!r}: its tokenizer is slow and reports no offsets; a tokenizer.json is needed"
        )
    for name in ("pad_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"model {config.name!r}: its tokenizer has no {name}; set one in tokenizer_config.json")
    return tokenizer


def model_layers(config: "ModelConfig") -> int:
    """Number of layers, read from the config file alone."""
    settings = AutoConfig.from_pretrained(model_folder(config), trust_remote_code=config.trust_remote_code)
    return int(settings.get_text_config().num_hidden_layers)


def model_kv_heads(config: "ModelConfig") -> int:
    """Number of KV heads, read from the config file alone; that of query heads where the two are not told apart."""
    settings = AutoConfig.from_pretrained(model_folder(config), trust_remote_code=config.trust_remote_code)
    text = settings.get_text_config()
    return int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
