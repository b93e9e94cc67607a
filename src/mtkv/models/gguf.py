"""Convert GGUF files to plain Hugging Face folders: de-quantised once by transformers, then used like any other, for training too.

transformers needs about a minute for a file and marks what it loads as quantised and not trainable; the converted folder is neither.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtkv.models.content_digest import sampled_digest
from mtkv.models.integrity import check_loaded
from mtkv.models.paths import card_path, gguf_path, models_folder, read_card
from mtkv.provenance.files import atomic_path, write_json

if TYPE_CHECKING:
    from mtkv.config.models import ModelConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FORMAT = 2  # version of the converted folders; those of another version are converted anew


def converted_folder(config: "ModelConfig") -> Path:
    """Folder of the converted model in the config's dtype, converted now where that has not been done.

    Raises FileNotFoundError without the file, ImportError without the package gguf, ValueError for a file that transformers cannot read
    completely.
    """
    path = gguf_path(config)
    if not path.is_file():
        raise FileNotFoundError(f"model {config.name!r}: there is no file {path}")
    digest = sampled_digest([path])
    folder = models_folder() / f"{path.stem}-{digest[:16]}-{config.dtype}"
    if (read_card(folder) or {}).get("format") != FORMAT:
        _convert(path, folder, config)
        facts = {"format": FORMAT, "source": "gguf", "name": str(path), "digest": digest, "dtype": config.dtype}
        write_json(card_path(folder), facts | {"bytes": sum(file.stat().st_size for file in folder.iterdir())})
    return folder


def _convert(path: Path, folder: Path, config: "ModelConfig") -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(
            f"model {config.name!r}: reading GGUF needs the package gguf; install it: pip install mtkv[gguf]"
        )
    where: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        load: Any = AutoModelForCausalLM.from_pretrained
        model, info = load(**where, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # the reader's own are of many kinds (struct.error, KeyError, …)
        raise ValueError(
            f"{path}: transformers cannot read this GGUF file ({type(error).__name__}: {error})"
        ) from error
    check_loaded(path, model, info)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    with atomic_path(folder, needed=BYTES[config.dtype] * model.num_parameters()) as temporary:
        model.to(getattr(torch, config.dtype)).save_pretrained(temporary)
        # A GGUF file does not say how texts are split before they are tokens; where the tokenizer's class knows, the folder says so too.
        tokenizer.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(temporary).save_pretrained(temporary)
