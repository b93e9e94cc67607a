"""A teacher that is spread over devices or processes gives the KV that it gives whole."""

import multiprocessing
import os
import socket

import pytest
import torch
from tokenizers_for_tests import byte_level_bpe

from mtkv.config.models import ModelConfig
from mtkv.kv.extract import read_rows
from mtkv.kv.row_statistics import ROW_STATISTICS
from mtkv.models import device_placement as placement
from mtkv.models.load import load_model
from mtkv.models.tokenization import encode_rows

TEXTS = (["Question: 12 apples and 30 more?", "How many?"], [" 42 apples.", " None at all, says Tom."])
LAYERS = [0, 1, 2]


@pytest.fixture
def saved(build_model, tmp_path):
    """A model's config and the rows as it reads them."""
    tokenizer = byte_level_bpe(300)

    def save(name):
        limit = {"n_positions": 128} if name == "gpt2" else {"max_position_embeddings": 128}
        build_model(name, vocab_size=len(tokenizer), **limit).save_pretrained(tmp_path / name)
        return ModelConfig(source="path", name=str(tmp_path / name)), encode_rows(tokenizer, *TEXTS)

    return save


def readings(config, rows, placed="single"):
    model = load_model(config, placed)
    return dict(read_rows(model, rows, LAYERS, 2, list(ROW_STATISTICS), asking=[row.is_target for row in rows]))


def assert_equal(one, other, **tolerance):
    assert one.keys() == other.keys()
    for index, reading in one.items():
        torch.testing.assert_close(other[index].kv, reading.kv, **tolerance)
        torch.testing.assert_close(other[index].importance, reading.importance, **tolerance)
        assert other[index].statistics == pytest.approx(reading.statistics, rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_layers_on_disk_and_in_memory_give_the_same_kv(saved, tmp_path, monkeypatch, name):
    config, rows = saved(name)
    whole = readings(config, rows)
    blocks = "transformer.h" if name == "gpt2" else "model.layers"
    rest = ["transformer.wte", "transformer.wpe", "transformer.ln_f"] if name == "gpt2" else ["model.embed_tokens"]
    rest += [] if name == "gpt2" else ["model.norm", "model.rotary_emb"]
    device_map = dict.fromkeys([*rest, "lm_head", f"{blocks}.0", f"{blocks}.2"], "cpu") | {f"{blocks}.1": "disk"}
    monkeypatch.setitem(
        placement.PLACEMENTS,
        "device_map",
        lambda: {"device_map": device_map, "offload_folder": str(tmp_path / "offload")},
    )
    model = load_model(config, "device_map")
    held = {str(p.device) for n, p in model.named_parameters() if f"{blocks}.1." in n}
    assert held == {"meta"}  # on disk, and in memory only while it is used
    assert_equal(whole, readings(config, rows, "device_map"), rtol=0, atol=0)


def test_device_map_auto_is_a_model_that_reads(saved):
    config, rows = saved("qwen3")
    assert_equal(readings(config, rows), readings(config, rows, "device_map"), rtol=0, atol=0)


def _part(rank, world, port, config, rows, results):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    torch.distributed.init_process_group("gloo")
    model = load_model(config, "tensor_parallel")
    heads = model.model.layers[0].self_attn.k_proj.weight.to_local().shape[0]
    found = dict(read_rows(model, rows, LAYERS, 2, list(ROW_STATISTICS), asking=[row.is_target for row in rows]))
    torch.save((heads, found), results / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_heads_over_two_processes_give_the_same_kv(saved, tmp_path, name):
    config, rows = saved(name)
    whole = readings(config, rows)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    parts = [context.Process(target=_part, args=(i, 2, port, config, rows, tmp_path)) for i in range(2)]
    for part in parts:
        part.start()
    for part in parts:
        part.join(120)
        assert part.exitcode == 0
    for rank in range(2):
        width, found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert width * 2 == whole[0].kv.shape[-1]
        assert_equal(whole, found, rtol=1e-4, atol=1e-3)  # importance is kept in half precision


def test_an_unknown_placement_is_named():
    with pytest.raises(ValueError, match="'everywhere' is unknown; there are single, device_map, tensor_parallel"):
        placement.placement_arguments("everywhere")
