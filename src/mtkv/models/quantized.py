"""A base model in four bits, for adapters to be trained on it (QLoRA, Dettmers et al., arXiv 2305.14314).

NF4 with double quantisation (§3): about half a byte for each weight of a linear layer. The rest stays in the model's own format, which
is also what the layers compute in.
"""

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig


def four_bit(dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained`. Raises ImportError without bitsandbytes."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            "training.lora.quantize 4bit needs the package bitsandbytes; install it: pip install mtkv[qlora], or leave quantize null"
        )
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        "device_map": {"": device},
    }
