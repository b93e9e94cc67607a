"""What a model's weights are, known without loading torch: called while Snakemake parses its rules.

In: the config of one model. Out: a short text that changes when the model's files do, so that whatever was made from it is
made again.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mtkv.models.paths import cached_commit, gguf_path, hub_folder, read_card

if TYPE_CHECKING:
    from mtkv.config.models import ModelConfig

POCKET = Path(__file__).parent / "pocket"


BLOCK = 2**16


BLOCKS = 16


MISSING = "missing"


def pocket_folder(name: str) -> Path:
    """Folder of a model shipped in the package."""
    return POCKET / name


def content_digest(config: "ModelConfig") -> str:
    """Digest of the model's files: hexadecimal digits, or "missing" for a model that is not there (yet).

    Pocket models: from the digests in `recipe.json`. Hub models: the commit that was fetched. Folders and GGUF files: from names,
    sizes and `BLOCKS` evenly spread blocks of each file, because reading many gigabytes at every plan would take minutes.
    """
    return DIGESTS[config.source](config)


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


def _recorded(config: "ModelConfig") -> str:
    recipe = json.loads((POCKET / "recipe.json").read_text(encoding="utf-8"))
    files: dict[str, str] = recipe["models"][config.name]["sha256"]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _of_folder(config: "ModelConfig") -> str:
    folder = Path(config.name)
    if not folder.is_dir():
        return MISSING
    return sampled_digest(sorted(entry for entry in folder.iterdir() if entry.is_file()))


def _of_hub(config: "ModelConfig") -> str:
    card = read_card(hub_folder(config))
    return card["commit"] if card else cached_commit(config) or MISSING


def _of_gguf(config: "ModelConfig") -> str:
    path = gguf_path(config)
    return sampled_digest([path]) if path.is_file() else MISSING


def _of_merged(config: "ModelConfig") -> str:
    parts = [content_digest(each) for each in config.merge]
    return MISSING if MISSING in parts else hashlib.sha256(json.dumps(parts).encode()).hexdigest()


DIGESTS: dict[str, Callable[["ModelConfig"], str]] = {
    "pocket": _recorded,
    "path": _of_folder,
    "hub": _of_hub,
    "gguf": _of_gguf,
    "merged": _of_merged,
}
