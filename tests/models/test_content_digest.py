"""Digests of model folders: they change with the content, and asking for them loads neither torch nor transformers."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mtkv.models.paths import content_digest, pocket_folder


def on_disk(folder):
    return content_digest(SimpleNamespace(source="path", name=str(folder)))


def test_pocket_digests_differ():
    digests = [content_digest(SimpleNamespace(source="pocket", name=name)) for name in ("student", "qwen2", "gpt2")]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_a_changed_byte_changes_the_digest_of_a_folder_and_touching_does_not(tmp_path, place):
    folder = shutil.copytree(pocket_folder("student"), tmp_path / "model")
    before = on_disk(folder)
    assert on_disk(shutil.copytree(folder, tmp_path / "copy")) == before
    os.utime(folder / "model.safetensors", (0, 0))
    assert on_disk(folder) == before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[place] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert on_disk(folder) != before


def test_missing_folder_is_missing(tmp_path):
    assert on_disk(tmp_path / "none") == "missing"


def test_digest_needs_neither_torch_nor_transformers():
    code = (
        "import sys; from types import SimpleNamespace as N; from mtkv.models.paths import content_digest;"
        "content_digest(N(source='pocket', name='student'));"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
