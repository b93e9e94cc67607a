"""The store gives back what was written, notices damage, and refuses what it does not hold."""

import numpy as np
import pytest
import torch

from mtkv.kv.extract import read_kv
from mtkv.kv.store import KVStore, StoredRow, write_index, write_shard
from mtkv.models.encode import EncodedRow

LENGTHS = [4, 1, 7, 3]


@pytest.fixture
def store(tmp_path):
    rows = [
        StoredRow(f"row-{i}", torch.randn(n, 2, 2, 6).half(), np.arange(n, dtype=np.int32) + 1)
        for i, n in enumerate(LENGTHS)
    ]
    shards = [tmp_path / "shard-0000.safetensors", tmp_path / "shard-0001.safetensors"]
    write_shard(shards[0], rows[:3], [0, 4])
    write_shard(shards[1], rows[3:], [0, 4])
    facts = write_index(shards, tmp_path / "index.parquet")
    assert facts["rows"] == 4
    assert facts["tokens"] == sum(LENGTHS)
    return tmp_path, rows


def test_every_row_comes_back(store):
    folder, rows = store
    opened = KVStore(folder, verify=True)
    assert opened.layers == [0, 4]
    assert opened.width == 6
    for row in rows:
        assert row.id in opened
        assert opened.byte_end(row.id).tolist() == row.byte_end.tolist()
        assert torch.equal(opened.read(row.id, np.arange(len(row.kv))), row.kv)
    picked = np.array([6, 0, 6])
    assert torch.equal(opened.read("row-2", picked), rows[2].kv[picked])


def test_a_token_outside_the_row_is_refused(store):
    opened = KVStore(store[0])
    for token in (4, -1):
        with pytest.raises(IndexError, match="row-0 has 4"):
            opened.read("row-0", np.array([token]))
    assert "row-9" not in opened


def test_a_damaged_shard_is_named(store):
    folder, _ = store
    shard = folder / "shard-0001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"shard-0001.*sha256"):
        KVStore(folder, verify=True)


def test_a_row_in_two_shards_is_refused(store):
    folder, rows = store
    twice = folder / "shard-0002.safetensors"
    write_shard(twice, rows[:1], [0, 4])
    with pytest.raises(ValueError, match="row-0"):
        write_index([folder / "shard-0000.safetensors", twice], folder / "index.parquet")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_batched_reading_equals_one_row_at_a_time(build_model, name):
    model = build_model(name)
    rng = np.random.default_rng(0)
    rows = [
        EncodedRow(rng.integers(3, 64, n), np.arange(n, dtype=np.int32), np.ones(n, dtype=bool))
        for n in (5, 9, 3, 9, 1)
    ]
    batched = list(read_kv(model, rows, [0, 2], 4))
    for row, got in zip(rows, batched, strict=True):
        (alone,) = read_kv(model, [row], [0, 2], 1)
        assert got.shape == (len(row.input_ids), 2, 2, alone.shape[-1])
        torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-4)
