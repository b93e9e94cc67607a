"""An extraction that is killed or asked to leave goes on where it stood, and leaves the bytes of an undisturbed one."""

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers_for_tests import byte_level_bpe

from mtkv.checkpointing.lock import LockedError
from mtkv.checkpointing.store import Checkpoint, checkpoint_folder, steps
from mtkv.config.models import ModelConfig
from mtkv.kv import extract
from mtkv.kv.extract import ExtractionParts, RowReading, StorePlan, extract_shard, read_part, write_part
from mtkv.provenance.digest import file_digest
from mtkv.provenance.files import DiskFullError, read_json

ROWS, BATCH = 60, 8
BATCHES = -(-ROWS // BATCH)
IDENTITY = {"stage": "teachers", "shard": 0}
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """`study.extract(root, output, dtype)` is the stage; `study.batches` counts what the model reads."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = byte_level_bpe()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    study = SimpleNamespace(batches=0, model=model)

    def count(module, arguments):
        study.batches += 1

    model.model.register_forward_pre_hook(count)
    patch = pytest.MonkeyPatch()
    patch.setattr(extract, "load_model", lambda config, placement="single": model)
    patch.setattr(extract, "load_tokenizer", lambda config: tokenizer)
    frame = pd.DataFrame({"id": [f"row-{i}" for i in range(ROWS)]})
    frame["prompt"] = ["Question: Tom has" + " many" * (i * 7 % 11) + f" apples {i}.\nAnswer:" for i in range(ROWS)]
    frame["target"] = [f" {i * 4}" for i in range(ROWS)]
    frame["reasoning_end"] = frame["prompt"].str.len()
    frame.to_parquet(folder / "rows.parquet")

    def run(root, output, dtype="float32"):
        arguments = (
            ModelConfig(name="gpt2"),
            [folder / "rows.parquet"],
            0,
            StorePlan([0, 2], 1, dtype, BATCH, True, ("entropy", "likelihood")),
            output,
        )
        if root is None:
            return extract_shard(*arguments)
        with Checkpoint(root, IDENTITY, {}) as checkpoint:
            return extract_shard(*arguments, checkpoint=checkpoint)

    study.extract = run
    study.reference = {}
    for dtype in ("float32", "int8"):
        assert run(None, folder / dtype, dtype)["resumed_at"] == []
        study.reference[dtype] = file_digest(folder / dtype)
    yield study
    patch.undo()


@pytest.fixture
def every_batch(monkeypatch):
    """Every batch becomes a part."""
    monkeypatch.setattr(extract, "INTERVAL", -1.0)


def in_child(work, seconds=None):
    """Run `work` in a forked process, which is killed after `seconds`; its exit code."""
    child = FORK.Process(target=work)
    child.start()
    child.join(seconds)
    child.kill()
    child.join()
    return child.exitcode


def kept(root):
    folder = checkpoint_folder(root, IDENTITY)
    return len(steps(folder)) if folder.exists() else 0


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_killed_at_many_moments_the_shard_has_the_bytes_of_an_undisturbed_one(study, tmp_path, every_batch, dtype):
    seed, output = random.Random(dtype), tmp_path / "shard.safetensors"
    start = time.monotonic()
    in_child(lambda: study.extract(tmp_path / "undisturbed", tmp_path / "other", dtype))
    seconds = time.monotonic() - start
    kills, progress = 0, []
    while not output.exists() and kills < 30:
        code = in_child(lambda: study.extract(tmp_path, output, dtype), seed.uniform(0, seconds) / 2)
        kills += code == -signal.SIGKILL
        progress.append(kept(tmp_path))
    assert kills >= 2
    assert progress[:-1] == sorted(progress[:-1])
    assert not output.exists() or file_digest(output) == study.reference[dtype]
    if not output.exists() or code == -signal.SIGKILL:  # killed after the shard stood, before its parts were removed
        study.extract(tmp_path, output, dtype)
    assert file_digest(output) == file_digest(tmp_path / "other") == study.reference[dtype]
    assert kept(tmp_path) == 0


@pytest.mark.parametrize("event", [20, 45, 70, 95, 120, 150, 190])
def test_killed_at_any_file_operation_nothing_is_read_twice(study, tmp_path, every_batch, event):
    output = tmp_path / "shard.safetensors"

    def work():
        left = event

        def count(name, arguments):
            nonlocal left
            left -= name.startswith(("open", "os.", "shutil."))
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        study.extract(tmp_path, output)

    assert in_child(work) == -signal.SIGKILL
    before, study.batches = kept(tmp_path), 0
    facts = study.extract(tmp_path, output)
    assert study.batches == BATCHES - before
    assert facts["resumed_at"] == ([before * BATCH] if before else [])
    assert file_digest(output) == study.reference["float32"]


def test_usr1_saves_and_leaves_with_75_and_the_next_attempt_reads_the_rest(study, tmp_path, monkeypatch):
    """With the usual interval, in which no part would be due."""
    output = tmp_path / "shard.safetensors"

    def signalled():
        study.batches = 0
        handle = study.model.lm_head.register_forward_pre_hook(
            lambda *_: os.kill(os.getpid(), signal.SIGUSR1) if study.batches == 3 else None
        )
        try:
            study.extract(tmp_path, output)
        finally:
            handle.remove()

    assert in_child(signalled) == 75
    assert not output.exists()
    assert kept(tmp_path) == 1
    progress = read_json(checkpoint_folder(tmp_path, IDENTITY) / "progress.json")
    assert (progress["total"], progress["unit"]) == (ROWS, "rows")
    study.batches = 0
    facts = study.extract(tmp_path, output)
    assert (study.batches, facts["resumed_at"]) == (BATCHES - 3, [3 * BATCH])
    assert file_digest(output) == study.reference["float32"]


def test_a_damaged_part_is_read_again_and_the_others_are_not(study, tmp_path, every_batch):
    output = tmp_path / "shard.safetensors"
    stop_after(study, tmp_path, output, 5)
    damaged = list(steps(checkpoint_folder(tmp_path, IDENTITY)).values())[1] / extract.FILE
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    stop_after(study, tmp_path, output, 2)  # number 1 again, and one more
    study.batches = 0
    facts = study.extract(tmp_path, output)
    assert study.batches == BATCHES - 6
    assert facts["resumed_at"] == [4 * BATCH, 6 * BATCH]
    assert file_digest(output) == study.reference["float32"]


def stop_after(study, root, output, count):
    """An extraction in a child that dies when the batch after `count` begins."""

    def work():
        study.batches = 0
        study.model.model.register_forward_pre_hook(
            lambda *_: os.kill(os.getpid(), signal.SIGKILL) if study.batches > count else None
        )
        study.extract(root, output)

    assert in_child(work) == -signal.SIGKILL


def test_a_full_disk_is_an_error_that_loses_nothing(study, tmp_path, every_batch, monkeypatch):
    output, calls = tmp_path / "shard.safetensors", []

    def full(tensors, path):
        calls.append(path)
        if len(calls) < 4:
            return save_file(tensors, path)
        path.symlink_to("/dev/full")
        return path.write_bytes(b"x" * 10_000)

    monkeypatch.setattr(extract, "save_file", full)
    with pytest.raises(DiskFullError, match="no space left"):
        study.extract(tmp_path, output)
    assert kept(tmp_path) == 3
    monkeypatch.undo()
    study.batches = 0
    study.extract(tmp_path, output)
    assert study.batches == BATCHES - 3
    assert file_digest(output) == study.reference["float32"]


def test_a_second_extraction_of_the_same_shard_is_refused(study, tmp_path):
    with Checkpoint(tmp_path, IDENTITY, {}), pytest.raises(LockedError, match="is being written by pid"):
        study.extract(tmp_path, tmp_path / "shard")
    assert not (tmp_path / "shard").exists()


def test_in_another_thread_parts_are_kept_too(study, tmp_path, every_batch):
    thread = threading.Thread(target=study.extract, args=(tmp_path, tmp_path / "shard"))
    thread.start()
    thread.join()
    assert file_digest(tmp_path / "shard") == study.reference["float32"]


def test_a_part_gives_back_every_bit(tmp_path):
    kv = torch.randn(3, 2, 2, 4)
    kv[0, 0, 0, :2] = torch.tensor([float("nan"), -0.0])
    rows = {
        7: RowReading(kv.bfloat16(), {"entropy": 1.0 / 3, "likelihood": -2.0 / 3}, torch.rand(3, 2, 2).half()),
        2: RowReading(kv[1:].bfloat16()[:, :1], {"entropy": float("nan"), "likelihood": -7.0}, None),
    }
    write_part(tmp_path / "part", rows)
    found = dict(read_part(tmp_path / "part"))
    assert list(found) == [7, 2]
    for index, row in rows.items():
        assert torch.equal(found[index].kv.contiguous().view(torch.int16), row.kv.contiguous().view(torch.int16))
        assert (found[index].importance is None) == (row.importance is None)
        assert found[index].statistics == pytest.approx(row.statistics, rel=0, abs=0, nan_ok=True)
    assert torch.equal(found[7].importance, rows[7].importance)


def test_without_a_checkpoint_nothing_is_kept():
    with ExtractionParts(None, 1, 1) as kept_rows:
        kept_rows.add(0, RowReading(torch.zeros(1), {}, None))
    assert kept_rows.found == {}
