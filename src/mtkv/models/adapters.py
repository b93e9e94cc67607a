"""Low-rank adapters (LoRA, Hu et al. 2021: W + (alpha / rank)·B·A with W frozen) through peft, on a plain or a four-bit model.

They are put into the model in place, so that it stays the transformers model that KV capture knows. The adapters compute in float32;
merging gives a plain model. Four bits are QLoRA's (Dettmers et al., arXiv 2305.14314, section 3): NF4 with double quantisation, about
half a byte for each weight of a linear layer; the rest stays in the model's own format, in which the layers compute too.
"""

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from mtkv.config.arms import LoraConfig


def four_bit(dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that load a model in four bits. Raises ImportError without bitsandbytes."""
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


def add_lora(model: PreTrainedModel, config: LoraConfig) -> None:
    """Freeze the model and add adapters, in place. Its output does not change until they are trained. An output head tied to the input
    embedding gets its own copy of the weights where one of the two has adapters: merging them would change both.

    Raises ImportError without peft, ValueError for a target that is no layer of the model.
    """
    if importlib.util.find_spec("peft") is None:
        raise ImportError("training.lora needs the package peft; install it: pip install mtkv[lora]")
    import peft

    names = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    if absent := [target for target in config.targets or [] if target not in names]:
        linear = sorted({path.rpartition(".")[2] for path, module in model.named_modules() if _is_linear(module)})
        raise ValueError(
            f"training.lora.targets: {', '.join(absent)} not in {type(model).__name__}; allowed: {', '.join(linear)}"
        )
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    ends = {path.rpartition(".")[2] for path, module in model.named_modules() if module in (words, head)}
    if head is not None and head.weight is words.weight and not ends.isdisjoint(config.targets or []):
        untie(model)
    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=config.targets or "all-linear",
        ),
        model,
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def untie(model: PreTrainedModel) -> None:
    """Give the output head its own copy of the weights it shares with the input embedding, in place, and untie them in the config."""
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def merge_lora(model: PreTrainedModel) -> None:
    """Add the adapters to the weights and remove them, in place; a model without adapters stays as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted: list[tuple[str, Any]] = [(path, m) for path, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    for path, module in adapted:
        module.merge()
        model.set_submodule(path, module.get_base_layer())
    # A model that still says it holds adapters would be saved as adapters alone.
    model._hf_peft_config_loaded = False
    if hasattr(model, "peft_config"):
        del model.peft_config


def _is_linear(module: Any) -> bool:
    return type(module).__name__ in ("Linear", "Conv1D")
