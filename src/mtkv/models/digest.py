"""What a model's weights are, known without loading torch: called while Snakemake parses its rules."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtkv.config.models import ModelConfig

POCKET = Path(__file__).parent / "pocket"


def pocket_folder(name: str) -> Path:
    """Folder of a model shipped in the package."""
    return POCKET / name


def content_digest(config: "ModelConfig") -> str | None:
    """Digest of a pocket model's files as recorded in `recipe.json`; None for models whose files are not recorded."""
    if config.source != "pocket":
        return None
    recipe = json.loads((POCKET / "recipe.json").read_text(encoding="utf-8"))
    files: dict[str, str] = recipe["models"][config.name]["sha256"]
    return " ".join(files[name][:16] for name in sorted(files))
