"""Is a model folder sound? Read in milliseconds, before anything is loaded or trained."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

WEIGHTS = (".safetensors", ".bin")
INDEX = "model.safetensors.index.json"


def check_weights(folder: Path) -> None:
    """Raises ValueError for a folder without weights, with a shard missing, or with a safetensors file whose header is corrupt or
    does not cover the file (an interrupted copy, a flipped bit)."""
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


UNREAD = ("pooler.",)  # the part of encoders that sums up a text; no KV passes through it


def check_loaded(folder: Path, info: dict[str, Any]) -> None:
    """Raises ValueError when weights of the model were not in its files or had other shapes: transformers would only warn and go on
    with random numbers. `info` is its loading info."""
    names = {"missing": info["missing_keys"], "of another shape": info["mismatched_keys"]}
    for what, keys in names.items():
        keys = [key for key in keys if not str(key).startswith(UNREAD)]
        if keys:
            some = ", ".join(sorted(str(key if isinstance(key, str) else key[0]) for key in keys)[:3])
            raise ValueError(f"{folder}: {len(keys)} weights are {what} in its files ({some}, …); {AGAIN}")


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
