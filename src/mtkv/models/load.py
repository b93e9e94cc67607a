"""Load a model and its tokenizer from where the config says: this package, a folder, the fetched hub models or a GGUF file.

Nothing is downloaded here: hub models are fetched by `snakemake assets` (`mtkv.models.download`), on a machine with network. GGUF files
are converted to plain Hugging Face folders, de-quantised once by transformers, then used like any other, for training too: transformers
needs about a minute for a file and marks what it loads as quantised and not trainable; the converted folder is neither.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mtkv.config.models import ModelConfig
from mtkv.models.adapters import four_bit
from mtkv.models.device_placement import SINGLE, kv_shape, placement_arguments
from mtkv.models.integrity import (
    causal_class,
    check_loaded,
    check_tokenizer,
    check_vocabulary,
    encoder_class,
    load_checked,
)
from mtkv.models.merged import average_weights
from mtkv.models.paths import (
    FUSER_FILE,
    LATENT_FILE,
    cached_commit,
    cached_snapshot,
    card_path,
    content_digest,
    gguf_path,
    hub_folder,
    is_injected,
    is_latent,
    models_folder,
    pocket_folder,
    read_card,
    sampled_digest,
)
from mtkv.models.pruned import check_cut, cut, layer_states
from mtkv.models.rope_scaling import context_length, scale_rope
from mtkv.models.tokenization import chat_template
from mtkv.models.tokenizer_limits import Reading
from mtkv.provenance.files import atomic_path, write_json

FORMAT = 2  # version of the converted folders; those of another version are converted anew


def converted_folder(config: ModelConfig) -> Path:
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


def merged_folder(config: ModelConfig) -> Path:
    """Folder of the average of `config.merge`, in the config's dtype, with the first model's tokenizer; made now where it is not there.

    Raises ValueError for models whose weights differ in name or shape.
    """
    digest, names = content_digest(config), [each.name for each in config.merge]
    folder = models_folder() / f"merged-{digest[:16]}-{config.dtype}"
    if read_card(folder) is None:
        models: list[Any] = [load_model(each) for each in config.merge]
        models[0].load_state_dict(average_weights([model.state_dict() for model in models], names))
        with atomic_path(folder, DTYPES[config.dtype].itemsize * models[0].num_parameters()) as temporary:
            models[0].to(DTYPES[config.dtype]).save_pretrained(temporary)
            read_tokenizer(model_folder(config.merge[0])).save_pretrained(temporary)
        write_json(card_path(folder), {"source": "merged", "of": names, "digest": digest, "dtype": config.dtype})
    return folder


def pruned_folder(config: ModelConfig) -> Path:
    """Folder of the model of `config.layers` of `config.teacher` alone, in the config's dtype, with the teacher's tokenizer; made now where
    it is not there. Raises ValueError as `decoder_layers`, `layer_states` and `check_cut` do.
    """
    assert config.teacher is not None
    digest = content_digest(config)
    folder = models_folder() / f"pruned-{digest[:16]}-{config.dtype}"
    if read_card(folder) is None:
        teacher = config.teacher.model_copy(update={"dtype": config.dtype, "rope_scaling": None})
        model: Any = load_model(teacher)
        expected, weights = layer_states(model, config.layers), cut(model, config.layers)
        with atomic_path(folder, sum(tensor.nbytes for tensor in weights.values())) as temporary:
            model.save_pretrained(temporary, state_dict=weights)
            read_tokenizer(model_folder(teacher)).save_pretrained(temporary)
            own = teacher.model_copy(
                update={"source": "path", "name": str(temporary), "revision": None, "gguf_file": None}
            )
            check_cut(load_model(own), config.layers, expected)
        facts = {"source": "pruned", "of": teacher.name, "layers": config.layers, "digest": digest}
        write_json(card_path(folder), facts | {"dtype": config.dtype})
    return folder


def _convert(path: Path, folder: Path, config: ModelConfig) -> None:
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
    with atomic_path(folder, needed=DTYPES[config.dtype].itemsize * model.num_parameters()) as temporary:
        model.to(DTYPES[config.dtype]).save_pretrained(temporary)
        # A GGUF file does not say how texts are split before they are tokens; where the tokenizer's class knows, the folder says so too.
        tokenizer.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(temporary).save_pretrained(temporary)


CAUSAL_CLASSES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def fetched_folder(config: ModelConfig) -> Path:
    """Folder of a hub model: in `assets`, else in Hugging Face's cache. Raises FileNotFoundError with the command that fetches it."""
    folder = hub_folder(config)
    if read_card(folder) is not None:
        return folder
    commit = cached_commit(config)
    if commit is None:
        revision = f" at revision {config.revision!r}" if config.revision else ""
        raise FileNotFoundError(
            f"model {config.name!r}{revision} is not on this machine (not in {folder} nor in Hugging Face's cache); "
            "fetch it on a machine with network: snakemake assets"
        )
    return cached_snapshot(config, commit)


FOLDERS: dict[str, Callable[[ModelConfig], Path]] = {
    "pocket": lambda config: pocket_folder(config.name),
    "path": lambda config: Path(config.name),
    "hub": fetched_folder,
    "gguf": converted_folder,
    "merged": merged_folder,
    "pruned": pruned_folder,
    "run": lambda config: config.run_folder / "model",
}


def model_folder(config: ModelConfig) -> Path:
    """The Hugging Face folder of a model. Raises FileNotFoundError naming the model when there is none, ValueError for the folder of a
    latent student or of one that reads teachers' KV, whose latents or teachers would be ignored silently."""
    folder = FOLDERS[config.source](config)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model {config.name!r}: no config.json in {folder}")
    if is_latent(folder):
        raise ValueError(
            f"model {config.name!r}: {folder} holds a latent student ({LATENT_FILE}), which is neither a student to begin with nor a "
            "teacher; name the model it was trained from, or a run of an arm with student_view: text"
        )
    if is_injected(folder):
        raise ValueError(
            f"model {config.name!r}: {folder} holds a student that reads its teachers' KV ({FUSER_FILE}), which is neither a student to "
            "begin with nor a teacher; name the model it was trained from"
        )
    return folder


def is_encoder(config: ModelConfig) -> bool:
    """Whether the model is an encoder, or an encoder–decoder of which the encoder is read: such a teacher attends in both directions, so
    its KV at a token depends on the text behind it too, answer included."""
    settings = _settings(config)
    if settings.is_encoder_decoder:
        return True
    generates = any(name.endswith(CAUSAL_CLASSES) for name in settings.architectures or [])
    return (
        type(settings) in MODEL_FOR_TEXT_ENCODING_MAPPING
        and not generates
        and not getattr(settings, "is_decoder", False)
    )


def load_model(config: ModelConfig, placement: str = SINGLE, quantized: bool = False) -> PreTrainedModel:
    """The model in the config's dtype, in eval mode, on the GPU when there is one (see `mtkv.models.device_placement`): a causal language
    model, or an encoder without a head (see `is_encoder`). `quantized`: its linear layers in four bits (see `mtkv.models.adapters`).

    Raises ValueError for weights that are corrupt or incomplete, or that the model has no parameters for.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    placing = four_bit(DTYPES[config.dtype], device) if quantized else placement_arguments(placement)
    folder = model_folder(config)
    settings = _settings(config)
    model = load_checked(
        (encoder_class if is_encoder(config) else causal_class)(settings),
        folder,
        config=settings,
        dtype=DTYPES[config.dtype],
        trust_remote_code=config.trust_remote_code,
        **placing,
    )
    loaded: PreTrainedModel = (model if placing else model.to(torch.device(device))).eval()
    return loaded


def read_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, unchanged; `options` are those of `from_pretrained`. Raises ValueError as `check_tokenizer` does.

    `TokenizersBackend`, also under its older name, reads tokenizer.json as it stands; AutoTokenizer takes another class for some types
    of models even where tokenizer_config.json asks for that one.
    """
    file = folder / "tokenizer_config.json"
    asked = json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class") if file.is_file() else None
    as_it_stands = asked in ("TokenizersBackend", "PreTrainedTokenizerFast") and (folder / "tokenizer.json").is_file()
    tokenizer = (PreTrainedTokenizerFast if as_it_stands else AutoTokenizer).from_pretrained(folder, **options)
    check_tokenizer(folder, tokenizer)
    return tokenizer


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's own tokenizer; its attribute `reading` says how `encode_rows` writes rows for this model.

    A tokenizer without pad token pads with eos: padding is masked everywhere, and an eos that ends an answer is told from padding by its
    position, so it stays a target. Raises ValueError as `check_tokenizer` does, for a slow tokenizer (it reports no offsets), for one
    without eos, for tokens that the model has no embedding for, and for `prompt: chat` without a chat template.
    """
    folder = model_folder(config)
    tokenizer = read_tokenizer(folder, trust_remote_code=config.trust_remote_code)
    if not tokenizer.is_fast:
        raise ValueError(
            f"model {config.name!r}: its tokenizer is slow and reports no offsets; a tokenizer.json is needed"
        )
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token  # encoders end a text with it
    if tokenizer.eos_token is None:
        raise ValueError(f"model {config.name!r}: its tokenizer has no eos_token; set one in tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    text: Any = _settings(config).get_text_config()
    check_vocabulary(config.name, tokenizer, text.vocab_size)
    if config.prompt == "chat":
        chat_template(tokenizer)
    tokenizer.reading = Reading(config.prompt, context_length(text), text.vocab_size, config.date)
    return tokenizer


def model_layers(config: ModelConfig) -> int:
    """Number of layers, read from the config file alone."""
    return int(_settings(config).get_text_config().num_hidden_layers)


def model_kv_heads(config: ModelConfig) -> int:
    """Number of KV heads, read from the config file alone."""
    return kv_shape(_settings(config))[0]


def _settings(config: ModelConfig) -> Any:
    """The model's transformers config, its RoPE scaled where the study's entry has `rope_scaling`."""
    settings = AutoConfig.from_pretrained(model_folder(config), trust_remote_code=config.trust_remote_code)
    if config.rope_scaling is not None:
        scale_rope(settings, config.rope_scaling)
    return settings
