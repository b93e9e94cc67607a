"""Digests follow code and not comments; files are whole or absent; cards say what made them."""

import importlib
import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from mtkv.checkpointing.store import Checkpoint
from mtkv.provenance import code_digest as code
from mtkv.provenance import files
from mtkv.provenance.card import Card
from mtkv.provenance.code_digest import code_digest, stage_modules
from mtkv.provenance.digest import digest_of, file_digest
from mtkv.provenance.files import atomic_path, read_json, write_json

STAGES = ["mtkv.data.build", "mtkv.kv.extract", "mtkv.stages.fit_map", "mtkv.stages.train", "mtkv.stages.predict"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `mtkv` of three modules that stands in for the real one, and a lock file."""
    folder = tmp_path / "src" / "mtkv"
    for name, text in {
        "__init__.py": "",
        "a/__init__.py": '"""Re-exports."""\nfrom mtkv.a.other import z\n',
        "a/stage.py": "import numpy\nfrom mtkv.a.part import f\n\ndef run():\n    return f()\n",
        "a/part.py": '"""Doc."""\n\ndef f():\n    """Doc."""\n    return 1  # why\n',
        "a/other.py": "z = 1\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "requirements.lock").write_text("numpy==2.0\npandas==3.0\n")
    monkeypatch.setattr(code, "PACKAGE_FOLDER", folder)

    def current():
        code.forget()
        return code_digest("mtkv.a.stage")

    yield folder, current
    monkeypatch.undo()
    code.forget()


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("a/part.py", "return 1", "return 2", True),
        ("a/part.py", "# why", "# because", False),
        ("a/part.py", '    """Doc."""', '    """Another."""', False),
        ("a/part.py", '    """Doc."""\n', "", False),
        ("a/other.py", "z = 1", "z = 2", False),
        ("a/stage.py", "return f()", "return f() + 1", True),
        ("../../requirements.lock", "numpy==2.0", "numpy==2.1", True),
        ("../../requirements.lock", "pandas==3.0", "pandas==3.1", False),
    ],
)
def test_what_changes_the_digest(package, file, old, new, changes):
    folder, current = package
    before = current()
    path = folder / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert (current() != before) == changes


def test_a_remembered_parse_gives_the_digest_of_a_fresh_one(package):
    folder, current = package
    memory = folder / "__pycache__" / f"code.{sys.implementation.cache_tag}.json"
    fresh = current()
    assert memory.is_file()
    assert current() == fresh
    known = read_json(memory)
    known["mtkv.a.part"][1] = "another digest"
    write_json(memory, known)
    assert current() != fresh  # so it is really read
    for broken in ("", "[]", '{"mtkv.a.part": 1}', '{"mtkv.a.part": ["x", "y", [[1]]]}'):
        memory.write_text(broken)
        assert current() == fresh
    memory.unlink()
    memory.mkdir()  # cannot be written
    assert current() == fresh


def test_type_checking_imports_do_not_count(package):
    folder, current = package
    before = current()
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mtkv.a.other import z\n"
    (folder / "a/stage.py").write_text(text + (folder / "a/stage.py").read_text())
    current()
    assert "mtkv.a.other" not in stage_modules("mtkv.a.stage")
    assert before != current()


# Each stage is imported in a fork of one process that has imported what takes long and is none of ours.
LOADED = f"""import importlib, json, os, sys
import datasets, lm_eval, pandas, scipy.stats, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
for stage in {STAGES}:
    if os.fork() == 0:
        importlib.import_module(stage)
        ours = [n for n, m in sys.modules.items() if n.startswith("mtkv.") and not hasattr(m, "__path__")]
        print(json.dumps([stage, ours]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, stage
"""


@pytest.fixture(scope="module")
def loaded():
    """The modules of ours, without packages, that importing each stage loads."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("stage", STAGES)
def test_static_imports_cover_what_python_really_imports(loaded, stage):
    """Every mtkv module loaded by importing the stage is covered, but for packages, config and provenance."""
    # the registry comes with config, which reads names by it; stages that look them up import it themselves
    recording = ("mtkv.config", "mtkv.registry", "mtkv.provenance", "mtkv.checkpointing")
    computing = {m for m in loaded[stage] if not m.startswith(recording)}
    assert stage in computing
    assert computing <= set(stage_modules(stage))


def test_an_unknown_module_is_an_error():
    with pytest.raises(ValueError, match=r"mtkv\.nothing"):
        code_digest("mtkv.nothing")


def test_digest_of_is_blind_to_key_order_only():
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 1.5})
    assert digest_of([1, 2]) != digest_of([2, 1])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "model"
    for name in ("old", "new"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert [p.name for p in target.iterdir()] == ["new"]


def test_a_card_says_what_made_it_and_a_failed_stage_writes_none(tmp_path):
    source = tmp_path / "input"
    source.write_text("x")
    facts = {"study": "s", "stage": "arms", "wildcards": {"arm": "sft"}, "config_digest": "c", "code_digest": "d"}
    path = tmp_path / "card.json"
    with pytest.raises(RuntimeError), Card(path, inputs=[], **facts):
        raise RuntimeError
    assert not path.exists()
    with Card(path, inputs=[str(source)], **facts) as card:
        card.result = {"tokens": 5, "seed": 42}
    written = read_json(path)
    assert written["inputs"] == {str(source): file_digest(source)}
    assert written["tokens"] == 5
    assert written["seed"] == 42
    assert written["wall_seconds"] >= 0
    assert written["peak_memory_mb"] > 1
    assert written["packages"]["torch"]


def write_everything(root, umask):
    """What stages write, by a process that began with this umask."""
    import torch
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    os.umask(umask)
    importlib.reload(files)  # it reads the umask when it is imported
    with atomic_path(root / "maps/map.safetensors") as temporary:
        save_file({"a": torch.ones(1)}, temporary)
    write_json(root / "card.json", {})
    with atomic_path(root / "model") as temporary:
        config = GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1)
        GPT2LMHeadModel(config).save_pretrained(temporary)
    with Checkpoint(root / "checkpoints", {}, {}) as checkpoint:

        def write(folder):
            (folder / "inner").mkdir(mode=0o700)
            save_file({"a": torch.ones(1)}, folder / "inner/optimizer.safetensors")

        checkpoint.save(1, write)
        assert (checkpoint.folder / "lock.json").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("umask", [0o002, 0o027])
def test_what_is_written_may_be_read_by_whom_the_umask_allows(tmp_path, umask):
    root = tmp_path / "written"
    process = multiprocessing.get_context("fork").Process(target=write_everything, args=(root, umask))
    process.start()
    process.join()
    assert process.exitcode == 0
    written = [root, *root.rglob("*")]
    assert {"map.safetensors", "model.safetensors", "optimizer.safetensors", "config.json", "manifest.json"} <= {
        path.name for path in written
    }
    for path in written:  # as `touch` and `mkdir` make them
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_permissions_are_added_and_links_are_left_alone(tmp_path):
    """A folder that hands its group on keeps doing so, and what a link leads to belongs to somebody else."""
    other = tmp_path / "other"
    other.touch(mode=0o400)
    with atomic_path(tmp_path / "model") as temporary:
        temporary.mkdir()
        temporary.chmod(0o2700)
        (temporary / "link").symlink_to(other)
        (temporary / "program").touch(mode=0o700)
    assert (tmp_path / "model").stat().st_mode & 0o2000
    assert (tmp_path / "model/program").stat().st_mode & 0o700 == 0o700
    assert other.stat().st_mode & 0o777 == 0o400
