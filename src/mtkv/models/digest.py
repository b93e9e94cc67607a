"""What a model's weights are, known without loading torch: called while Snakemake parses its rules.

In: the config of one model. Out: a short text that changes when the model's files do, so that whatever was made from it is
made again.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtkv.config.models import ModelConfig

POCKET = Path(__file__).parent / "pocket"
BLOCK = 2**16
BLOCKS = 16


def pocket_folder(name: str) -> Path:
    """Folder of a model shipped in the package."""
    return POCKET / name


def content_digest(config: "ModelConfig") -> str:
    """Digest of the model's files: 64 hexadecimal digits, or "missing" for a folder that is not there (yet).

    Pocket models: from the digests in `recipe.json`. Folders on disk: from names, sizes and `BLOCKS` evenly spread blocks of
    each file, because reading many gigabytes at every plan would take minutes.
    """
    return DIGESTS[config.source](config.name)


def _recorded(name: str) -> str:
    recipe = json.loads((POCKET / "recipe.json").read_text(encoding="utf-8"))
    files: dict[str, str] = recipe["models"][name]["sha256"]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sampled(name: str) -> str:
    folder = Path(name)
    if not folder.is_dir():
        return "missing"
    digest = hashlib.sha256()
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for block in range(BLOCKS):
                file.seek(max(0, size - BLOCK) * block // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
                if size <= BLOCK:
                    break
    return digest.hexdigest()


DIGESTS: dict[str, Callable[[str], str]] = {"pocket": _recorded, "path": _sampled}
