"""An online teacher gives the numbers of a float32 store, and keeps only the batch it was asked for."""

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers_for_tests import byte_level_bpe, unigram

from mtkv.config.models import ModelConfig
from mtkv.kv import online_teacher as online
from mtkv.kv.extract import StorePlan, extract_shard
from mtkv.kv.online_teacher import OnlineTeacher
from mtkv.kv.store import KVStore, write_index

LAYERS = [0, 2]
NOTED = ("entropy", "likelihood")
TOKENIZERS = {"llama": byte_level_bpe, "gpt2": unigram}
ROWS = pd.DataFrame(
    {
        "id": [f"row-{i}" for i in range(9)],
        "prompt": [f"Question: Tom has {i * 7} apples.{' And more.' * (i % 4)} How many?\nAnswer:" for i in range(9)],
        "target": [f" {i * 7} 个" for i in range(9)],
    }
)


@pytest.fixture(params=sorted(TOKENIZERS))
def both(request, build_model, tmp_path, monkeypatch):
    """The float32 store and the online teacher of one model."""
    tokenizer = TOKENIZERS[request.param]()
    limit = {"n_positions": 256} if request.param == "gpt2" else {"max_position_embeddings": 256}
    model = build_model(request.param, vocab_size=len(tokenizer), **limit)
    monkeypatch.setattr("mtkv.kv.extract.load_model", lambda config, placement="single": model)
    monkeypatch.setattr("mtkv.kv.extract.load_tokenizer", lambda config: tokenizer)
    ROWS.to_parquet(tmp_path / "rows.parquet")
    shards = [tmp_path / f"shard-{i:04d}.safetensors" for i in range(2)]
    for i, shard in enumerate(shards):
        extract_shard(
            ModelConfig(name="gpt2"),
            [tmp_path / "rows.parquet"],
            i,
            StorePlan(LAYERS, 2, "float32", 4, statistics=NOTED),
            shard,
        )
    write_index(shards, tmp_path / "index.parquet")
    return KVStore(tmp_path, statistics=NOTED), OnlineTeacher(model, tokenizer, ROWS, LAYERS, 3, NOTED)


def test_the_same_numbers_as_the_store(both):
    store, teacher = both
    assert (teacher.layers, teacher.width) == (store.layers, store.width)
    batch = list(ROWS["id"][[7, 0, 3, 4, 2]])
    teacher.prefetch(batch)
    for row in batch:
        assert row in teacher
        assert teacher.byte_end(row).tolist() == store.byte_end(row).tolist()
        assert teacher.byte_start(row).tolist() == store.byte_start(row).tolist()
        tokens = np.random.default_rng(0).permutation(len(store.byte_end(row)))
        torch.testing.assert_close(teacher.read(row, tokens), store.read(row, tokens), atol=2e-5, rtol=1e-4)
        assert teacher.statistics(row) == pytest.approx(store.statistics(row), abs=1e-5)
        assert list(store.statistics(row)) == list(NOTED)
    assert "row-99" not in teacher
    tokens = [np.array([3, 1])] * 5
    torch.testing.assert_close(teacher.read_batch(batch, tokens), store.read_batch(batch, tokens), atol=2e-5, rtol=1e-4)


def test_one_forward_for_a_batch_and_only_its_rows_are_kept(both, monkeypatch):
    _, teacher = both
    read = []
    original = online.read_rows
    monkeypatch.setattr(
        online, "read_rows", lambda model, rows, *rest: read.append(len(rows)) or original(model, rows, *rest)
    )
    forwards = []
    hook = teacher.model.base_model.register_forward_hook(lambda *_: forwards.append(1))
    teacher.prefetch(["row-1", "row-2", "row-1", "row-3"])
    assert (read, len(forwards)) == ([3], 1)
    for row in ("row-1", "row-2", "row-3"):
        teacher.read(row, np.array([0]))
        teacher.statistics(row)
    teacher.prefetch(["row-3", "row-4"])
    assert (read, len(forwards)) == ([3, 1], 2)
    assert sorted(teacher._kept) == ["row-3", "row-4"]
    teacher.statistics("row-1")
    assert len(forwards) == 2
    teacher.statistics("row-5")
    assert len(forwards) == 3
    assert sorted(teacher._kept) == ["row-3", "row-4"]
    teacher.read("row-1", np.array([0]))
    assert sorted(teacher._kept) == ["row-1"]
    hook.remove()


def test_a_token_outside_the_row_is_refused_and_nothing_is_trained(both):
    _, teacher = both
    length = len(teacher.byte_end("row-0"))
    with pytest.raises(IndexError, match=f"row-0 has {length}"):
        teacher.read("row-0", np.array([length]))
    assert not teacher.read("row-0", np.array([1])).requires_grad
