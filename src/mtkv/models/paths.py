"""Paths of models on this machine, and what their weights are, without importing torch or huggingface_hub.

`assets/models/<slug>` is a plain Hugging Face folder and `assets/models/<slug>.json` its card, written last: a folder without a card
is not complete. `MTKV_ASSETS` replaces `assets`. Hub models may also lie in Hugging Face's own cache (`HF_HOME`). `content_digest`, called
while Snakemake parses its rules, changes when a model's files do, so that whatever was made from it is made again.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mtkv.config.models import ModelConfig
from mtkv.config.runs import FUSER_FILE, LATENT_FILE

MAIN = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")


def models_folder() -> Path:
    """Folder of the fetched and the converted models."""
    return Path(os.environ.get("MTKV_ASSETS", "assets")) / "models"


def hub_folder(config: ModelConfig) -> Path:
    """Folder that a hub model is fetched to."""
    return models_folder() / re.sub(r"[^A-Za-z0-9._-]", "--", f"{config.name}@{config.revision or MAIN}")


def card_path(folder: Path) -> Path:
    """Path of the card beside a model folder; not inside, so that the folder holds the model's files alone."""
    return folder.with_name(f"{folder.name}.json")


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card of a complete model folder; None for one that is absent or unfinished."""
    card = card_path(folder)
    if not (card.is_file() and (folder / "config.json").is_file()):
        return None
    found: dict[str, Any] = json.loads(card.read_text(encoding="utf-8"))
    return found


def cached_commit(config: ModelConfig) -> str | None:
    """Commit of a hub model's revision as Hugging Face's cache knows it; None where it is not there."""
    revision = config.revision or MAIN
    reference = cache_folder(config) / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    return commit if COMMIT.fullmatch(commit) and cached_snapshot(config, commit).is_dir() else None


def cached_snapshot(config: ModelConfig, commit: str) -> Path:
    """Folder of one commit in Hugging Face's cache."""
    return cache_folder(config) / "snapshots" / commit


def cache_folder(config: ModelConfig) -> Path:
    """Folder of a hub model in Hugging Face's cache, by that library's rules (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME)."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", home)) / "hub"
    return Path(cache).expanduser() / f"models--{config.name.replace('/', '--')}"


def gguf_path(config: ModelConfig) -> Path:
    """The GGUF file of a model."""
    return Path(config.name) / config.gguf_file if config.gguf_file else Path(config.name)


def is_latent(folder: Path) -> bool:
    """Whether a model folder is that of a latent student."""
    return (Path(folder) / LATENT_FILE).is_file()


def is_injected(folder: Path) -> bool:
    """Whether the folder holds a student that reads teachers' KV."""
    return (folder / FUSER_FILE).is_file()


POCKET = Path(__file__).parent / "pocket"


BLOCK = 2**16


BLOCKS = 16


MISSING = "missing"
INPUT = "input"


def pocket_folder(name: str) -> Path:
    """Folder of a model shipped in the package."""
    return POCKET / name


def content_digest(config: ModelConfig, study: str | None = None) -> str:
    """Digest of the model's files: hexadecimal digits, or "missing" for a model that is not there (yet).

    `study`: the study whose jobs are planned: the digest of one of its own runs, which is an input of the job that reads it, is "input".

    Pocket models: from the digests in `recipe.json`. Hub models: the commit that was fetched. Folders and GGUF files: from names,
    sizes and `BLOCKS` evenly spread blocks of each file, because reading many gigabytes at every plan would take minutes.
    """
    if config.source == "pocket":
        recipe = json.loads((POCKET / "recipe.json").read_text(encoding="utf-8"))
        files: dict[str, str] = recipe["models"][config.name]["sha256"]
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    if config.source == "hub":
        card = read_card(hub_folder(config))
        return card["commit"] if card else cached_commit(config) or MISSING
    if config.source in ("merged", "pruned"):
        parts = [*(content_digest(part, study) for part in config.parts), *map(str, config.layers)]
        return MISSING if MISSING in parts else hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    if config.source == "gguf":
        path = gguf_path(config)
        return sampled_digest([path]) if path.is_file() else MISSING
    if config.source == "run" and config.study == study:
        return INPUT
    folder = config.run_folder / "model" if config.source == "run" else Path(config.name)
    return (
        sampled_digest(sorted(entry for entry in folder.iterdir() if entry.is_file())) if folder.is_dir() else MISSING
    )


def sampled_digest(paths: Iterable[Path]) -> str:
    """64 hexadecimal digits over name, size and sampled content of files."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for block in range(BLOCKS):
                file.seek(max(0, size - BLOCK) * block // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
                if size <= BLOCK:
                    break
    return digest.hexdigest()
