"""Model folders on disk, as the hub would have them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers_for_tests import byte_level_bpe


@pytest.fixture
def model_folder(build_model) -> Callable[..., Path]:
    """`model_folder(architecture, folder, tokenizer=None, **overrides)` → a folder with random weights and a tokenizer."""

    def write(architecture: str, folder: Path, tokenizer: Any = None, **overrides: Any) -> Path:
        tokenizer = tokenizer or byte_level_bpe()
        model = build_model(architecture, **({"vocab_size": len(tokenizer)} | overrides))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write
