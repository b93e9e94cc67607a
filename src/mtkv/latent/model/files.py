"""A latent student on disk: an ordinary model folder plus one small file of the latents.

`latent.safetensors` holds the tensors of `LatentTokens` in float32; its metadata hold the format, M, T and which parts there are, in
one entry: safetensors writes several in random order, and the same latents would not give the same bytes.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from mtkv.latent.model.latent_tokens import LatentTokens
from mtkv.models.auto_class import causal_class
from mtkv.models.integrity import load_checked
from mtkv.models.paths import LATENT_FILE
from mtkv.models.tokenization import end_answers, frame_of

FORMAT = 2


def save_latent_folder(
    folder: Path, model: PreTrainedModel, latent: LatentTokens, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write model, tokenizer and latents into `folder`; the generation config knows the token that ends an answer."""
    end_answers(model, frame_of(tokenizer).end_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in latent.state_dict().items()}
    settings = {"format": FORMAT} | {name: int(value) for name, value in latent.settings().items()}
    save_file(tensors, Path(folder) / LATENT_FILE, metadata={"latent": json.dumps(settings)})


def load_latent_folder(folder: Path, **model_options: Any) -> tuple[PreTrainedModel, LatentTokens]:
    """Model and latents of a folder. Raises FileNotFoundError and ValueError as `load_latents` does,
    ValueError as `load_checked`."""
    latent = load_latents(folder)  # first: milliseconds, and its errors say more
    options = {"dtype": "auto", "local_files_only": True} | model_options
    return load_checked(causal_class(AutoConfig.from_pretrained(folder)), folder, **options), latent


def load_latents(folder: Path) -> LatentTokens:
    """The latents of a folder. Raises FileNotFoundError where there are none, ValueError naming what is wrong with the file."""
    path = Path(folder) / LATENT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no {LATENT_FILE}, so this is no latent student; load it as a plain model")
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {}).get("latent", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a sound safetensors file ({error}); train or copy it again") from None
    if settings.get("format") != FORMAT:
        raise ValueError(f"{path}: format {settings.get('format')!r}, this version reads {FORMAT!r}; train it again")
    latent = LatentTokens(**_checked(path, settings))
    wanted = {name: tuple(tensor.shape) for name, tensor in latent.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        name = wrong[0]
        raise ValueError(
            f"{path}: {name} has shape {found.get(name, 'none: it is missing')}, its metadata ask for "
            f"{wanted.get(name, 'no such tensor')}; train or copy it again"
        )
    latent.load_state_dict(tensors)
    return latent


def _checked(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    numbers, switches = ("width", "tokens", "iterations"), ("projection", "markers")
    if absent := [name for name in numbers + switches if not isinstance(settings.get(name), int)]:
        raise ValueError(f"{path}: its metadata do not say {', '.join(absent)}; train or copy it again")
    return {name: settings[name] for name in numbers} | {name: bool(settings[name]) for name in switches}
