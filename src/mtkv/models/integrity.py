"""Is a model folder complete and undamaged, and is what was loaded of it what the folder holds?

`check_weights` takes milliseconds and needs no model; `load_checked`, through which the package loads all weights by one of transformers'
auto classes (`causal_class`, `encoder_class`), checks the rest: transformers would only warn of tensors that it filled at random or
ignored.
"""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForTextEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

WEIGHTS = (".safetensors", ".bin")
INDEX = "model.safetensors.index.json"


def check_weights(folder: Path) -> None:
    """Raises ValueError for a folder without weights, with a shard missing, or with a safetensors file whose header is corrupt or
    does not cover the file (an interrupted copy, a flipped bit), and for one with an adapter, which transformers would apply where peft is
    installed."""
    if adapter := sorted(path.name for path in folder.glob("adapter_*")):
        raise ValueError(
            f"{folder}: holds an adapter ({', '.join(adapter)}); merge it into the weights (peft: merge_and_unload, save_pretrained), or "
            "move these files away to use the weights without it"
        )
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS)
    if not files:
        raise ValueError(f"{folder}: holds no model weights (*.safetensors)")
    index = folder / INDEX
    wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else set()
    if absent := sorted(wanted - {path.name for path in files}):
        raise ValueError(f"{folder}: {', '.join(absent)} missing, which {INDEX} names; {AGAIN}")
    for path in files:
        if path.suffix == ".safetensors":
            _check_header(path)


AGAIN = "copy or fetch the model again (for a hub model, delete its folder and run `snakemake assets`)"


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, framework="np") as file:
            list(file.keys())
    except (SafetensorError, OSError) as error:
        size = f"{path.stat().st_size:,}"
        raise ValueError(f"{path}: not a sound safetensors file of {size} bytes ({error}); {AGAIN}") from None


def load_checked(auto: Any, folder: Path, **options: Any) -> Any:
    """The model of a folder by one of transformers' auto classes; `options` are those of `from_pretrained`.

    Raises ValueError as `check_weights` and `check_loaded` do.
    """
    check_weights(folder)
    model, info = auto.from_pretrained(folder, output_loading_info=True, **options)
    check_loaded(folder, model, info)
    return model


UNREAD = ("pooler.",)  # weights that may be missing: the pooling head of encoders, through which no KV passes
# What training leaves beside complete weights when it saves its wrapper: an adapter that was not merged, a second copy.
WRAPPED = re.compile(r"^(base_model|module|_orig_mod)\.|(^|\.)lora_")
# Tensors in older files that are no weights: causal masks, position tables and version numbers, which models compute themselves now.
RECOMPUTED = re.compile(r"(^|\.)((attn|attention)\.(masked_)?bias|(original_)?inv_freq|position_ids|version)$")


def check_loaded(folder: Path | str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Raises ValueError when weights of the model were missing from its files or had other shapes (transformers would go on with random
    numbers), or when the files hold more than the model (layers or biases that its config does not have, an adapter that was not merged),
    which it would ignore.

    `info` is transformers' loading info, which leaves out tied weights. Weights of a part that the model does not have are allowed:
    another head, the decoder of a model whose encoder is read.
    """
    prefix = f"{model.base_model_prefix}."
    parts = {name for module in (model, model.base_model) for name, _ in module.named_children()}
    unused = [
        name
        for name in info["unexpected_keys"]
        if (name.startswith(prefix) or name.partition(".")[0] in parts or WRAPPED.search(name))
        and not RECOMPUTED.search(name)
    ]
    names = {
        "missing in its files": info["missing_keys"],
        "of another shape in its files": [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]],
        f"in its files, but in no place of {type(model).__name__} as config.json describes it": unused,
    }
    for what, keys in names.items():
        if keys := sorted(key for key in keys if not key.removeprefix(prefix).startswith(UNREAD)):
            raise ValueError(f"{folder}: {len(keys)} weights are {what} ({', '.join(keys[:3])}, …); {AGAIN}")
    if info["error_msgs"]:
        raise ValueError(f"{folder}: {info['error_msgs'][0]}; {AGAIN}")


# Samples of what rows contain: words, numbers, sums, code, newlines, Chinese, accents and emoji. Like rows, none begins with a blank.
PROBES = (
    "Question: Tom has 12 apples and buys 1,030 more. How many apples?\nReason: 12+1030=1042\nAnswer: 1042",
    "It's  two blanks, 12.5% of $70 = (x_1)^2;\n\n\tdef f(x): return x['key'] != None  # they're\r\n- **(A)**",
    "问题：小明有 25 个苹果，又买了 3 个。\n推理：25+3=28\n答案：28",
    "Émile naïvely paid 7€ for a CAFÉ crème — twice! 🙂",
)


def check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError when the tokenizer splits a text otherwise than the folder's tokenizer.json: for some classes transformers takes
    only the vocabulary from that file, and splits texts by rules of the class."""
    file = folder / "tokenizer.json"
    if not (tokenizer.is_fast and file.is_file()):
        return
    stated = Tokenizer.from_file(str(file))
    stated.no_truncation()
    stated.no_padding()
    for text in PROBES:
        read = tokenizer(text, add_special_tokens=False)["input_ids"]
        said = stated.encode(text, add_special_tokens=False).ids
        if read != said:
            raise ValueError(
                f"{folder}: {type(tokenizer).__name__} reads {text!r} as {len(read)} tokens that are not the {len(said)} of {file.name}: "
                'transformers splits texts by the tokenizer\'s class, whatever that file says; write "tokenizer_class": '
                '"TokenizersBackend" into its tokenizer_config.json, so that the file counts'
            )


def check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, embeddings: int) -> None:
    """Raises ValueError when the tokenizer gives ids that the model has no embedding for.

    Special tokens other than eos and pad may lie beyond the embedding (Gemma 3's token for images does): rows that use one are
    refused where they are encoded.
    """
    if len(tokenizer) <= embeddings:
        return
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    needed = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    beyond = [
        index for index in tokenizer.get_vocab().values() if index >= embeddings and index not in special - needed
    ]
    if beyond:
        token = tokenizer.convert_ids_to_tokens(min(beyond))
        raise ValueError(
            f"model {name!r}: its tokenizer has {len(tokenizer)} tokens, but the model only {embeddings} embeddings; "
            f"{len(beyond)} tokens have none, {token!r} among them: tokenizer and model do not belong together"
        )


def causal_class(settings: Any) -> Any:
    """The auto class for the config `settings` of a causal or a multimodal language model (which never gets images here).

    Raises ValueError, naming the type, for any other config, such as that of a speech model.
    """
    if _known(settings, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM):
        return AutoModelForCausalLM
    if not settings.is_encoder_decoder and _known(
        settings, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText
    ):
        return AutoModelForImageTextToText
    raise ValueError(
        f"model type {settings.model_type!r} is neither a causal language model nor a multimodal one with a text model that could be "
        "read alone; name its language model, where that is published by itself"
    )


def encoder_class(settings: Any) -> Any:
    """The auto class for an encoder, or an encoder–decoder's encoder. Raises ValueError, naming the type, where none reads text."""
    if _known(settings, MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModelForTextEncoding):
        return AutoModelForTextEncoding
    raise ValueError(f"model type {settings.model_type!r} has no encoder of text that could be read alone; use another")


def _known(settings: Any, mapping: Any, auto: type) -> bool:
    """Whether `mapping` has the config's class, or the model brings its own code for the auto class `auto`."""
    return type(settings) in mapping or auto.__name__ in (getattr(settings, "auto_map", None) or {})
