"""GGUF files written here, tensor by tensor, from a model that is known."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers_for_tests import byte_level_bpe

from mtkv.config.models import ModelConfig
from mtkv.models import load as converting
from mtkv.models.load import load_model, load_tokenizer, model_folder, model_kv_heads
from mtkv.models.paths import card_path, content_digest
from mtkv.models.tokenization import encode_rows
from mtkv.provenance.files import write_json

PLACES = {  # transformers' names and GGUF's (llama.cpp, gguf-py/gguf/constants.py)
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(autouse=True)
def assets(tmp_path, monkeypatch):
    monkeypatch.setenv("MTKV_ASSETS", str(tmp_path / "assets"))
    return tmp_path / "assets"


def test_a_file_that_is_not_there_and_one_that_is_none(tmp_path):
    config = ModelConfig(source="gguf", name=str(tmp_path / "model.gguf"))
    assert content_digest(config) == "missing"
    with pytest.raises(FileNotFoundError, match=r"there is no file .*model\.gguf"):
        load_model(config)


def test_without_the_package_the_command_is_named(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install mtkv\[gguf\]"):
        load_model(ModelConfig(source="gguf", name=str(tmp_path / "model.gguf")))


def write_gguf(path, family, model, tokenizer, packed):
    """The GGUF file of a model, as llama.cpp's converter lays it out: `packed(name, matrix)` gives (array, type or None)."""
    gguf = pytest.importorskip("gguf", reason="the extra mtkv[gguf] is not installed")
    path.parent.mkdir(parents=True)
    writer, settings = gguf.GGUFWriter(path, family), model.config
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_freq_base(settings.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    learned = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_token_list(sorted(learned["vocab"], key=learned["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in learned["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    for name, value in model.state_dict().items():
        module, _, kind = name.removeprefix("model.layers.").rpartition(".")
        layer, _, inner = module.partition(".") if module[0].isdigit() else ("", "", module)
        place = f"blk.{layer}.{PLACES[inner]}" if layer else PLACES[inner]
        array, quantised = packed(name, value.numpy()) if value.ndim == 2 else (value.numpy(), None)
        writer.add_tensor(f"{place}.{kind}", array, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def written(build_model, tmp_path):
    """A model and the GGUF file of it: layer norms and biases in float32, matrices in Q8_0 (blocks of 32)."""
    gguf = pytest.importorskip("gguf", reason="the extra mtkv[gguf] is not installed")
    tokenizer = byte_level_bpe()
    model = build_model("qwen2", vocab_size=len(tokenizer), intermediate_size=64, tie_word_embeddings=False)
    kind = gguf.GGMLQuantizationType.Q8_0
    path = tmp_path / "folder" / "tiny-q8.gguf"
    return model, write_gguf(
        path, "qwen2", model, tokenizer, lambda _, value: (gguf.quants.quantize(value, kind), kind)
    )


def interleaved(name, value):
    """llama.cpp turns neighbouring pairs in RoPE, transformers the two halves: rows of q and k change places in a llama file."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if heads:
        value = value.reshape(heads, 2, len(value) // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
    return np.ascontiguousarray(value), None


def test_a_llama_in_full_precision_says_what_the_original_says(build_model, tmp_path):
    tokenizer = byte_level_bpe()
    options = {"vocab_size": len(tokenizer), "intermediate_size": 64, "tie_word_embeddings": False}
    model = build_model("llama", **options, initializer_range=0.3)
    path = write_gguf(tmp_path / "folder" / "tiny.gguf", "llama", model, tokenizer, interleaved)
    loaded = load_model(ModelConfig(source="gguf", name=str(path)))
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        mine, theirs = loaded(ids).logits, model(ids).logits
    assert theirs.std() > 0.1
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def q8(values: torch.Tensor) -> torch.Tensor:
    """Q8_0 by its definition: blocks of 32 along the row, scale = largest / 127 as float16."""
    blocks = values.numpy().reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / 127
    steps = np.round(blocks / np.where(scale == 0, 1, scale))
    return torch.from_numpy((steps * scale.astype(np.float16).astype(np.float32)).reshape(values.shape))


def test_a_gguf_model_is_the_dequantised_one_plain_and_trainable(written, assets):
    model, path = written
    config = ModelConfig(source="gguf", name=str(path))
    loaded = load_model(config)
    assert not hasattr(loaded.config, "quantization_config")
    original = model.state_dict()
    assert set(loaded.state_dict()) == set(original)
    for name, value in loaded.state_dict().items():
        wanted = q8(original[name]) if value.ndim == 2 else original[name]
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-3)
    loaded.train()
    loaded(torch.arange(9)[None]).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    assert model_kv_heads(config) == 2
    assert [folder.name for folder in (assets / "models").iterdir() if folder.is_dir()] == [model_folder(config).name]


def test_its_tokenizer_reads_as_the_one_it_came_from(written):
    _, path = written
    tokenizer = load_tokenizer(ModelConfig(source="gguf", name=str(path)))
    rows = ["Question: Tom has 小明 apples"], [" Answer: a café"]  # Qwen2 splits digits, the original does not
    (mine,), (theirs,) = encode_rows(tokenizer, *rows, None), encode_rows(byte_level_bpe(), *rows, None)
    assert mine.input_ids.tolist() == theirs.input_ids.tolist()
    assert mine.byte_end.tolist() == theirs.byte_end.tolist()


def test_the_folder_says_how_its_tokenizer_splits(written):
    """Qwen2's splitter, which the GGUF file does not hold: every digit alone, NFC; also where an older version left another one."""
    _, path = written
    config = ModelConfig(source="gguf", name=str(path))
    folder = model_folder(config)
    byte_level_bpe().backend_tokenizer.save(str(folder / "tokenizer.json"))
    write_json(card_path(folder), {"source": "gguf"})
    stated = Tokenizer.from_file(str(model_folder(config) / "tokenizer.json"))
    assert stated.normalizer.normalize_str("e\u0301") == "é"
    assert [word for word, _ in stated.pre_tokenizer.pre_tokenize_str("12 30")] == ["1", "2", "Ġ", "3", "0"]
    assert load_tokenizer(config)("12 30é")["input_ids"] == stated.encode("12 30é").ids


def test_it_is_converted_once_and_anew_when_the_file_changes(written, monkeypatch):
    _, path = written
    by_folder = ModelConfig(source="gguf", name=str(path.parent), gguf_file=path.name, dtype="bfloat16")
    first = model_folder(by_folder)
    assert load_model(by_folder).dtype == torch.bfloat16
    calls = []
    monkeypatch.setattr(converting, "_convert", lambda *arguments: calls.append(arguments))
    assert model_folder(by_folder.model_copy(update={"name": str(path), "gguf_file": None})) == first
    assert calls == []
    with path.open("ab") as file:
        file.write(b"\0")
    digest = content_digest(by_folder)
    assert digest[:16] not in first.name
    with pytest.raises(FileNotFoundError):  # nothing was written by the stand-in
        model_folder(by_folder)
    assert len(calls) == 1


def test_a_cut_gguf_file_is_refused_and_leaves_nothing(written, assets):
    _, path = written
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"tiny-q8\.gguf: transformers cannot read this GGUF file"):
        load_model(ModelConfig(source="gguf", name=str(path)))
    assert not list(assets.rglob("*.json"))


@pytest.mark.skipif(not Path("/tmp/real/smollm2-135m-instruct.gguf").is_dir(), reason="no real models on this machine")
def test_a_real_file_has_its_chat_template():
    """Only what costs little: the digest of a hundred megabytes is sampled."""
    config = ModelConfig(source="gguf", name="/tmp/real/smollm2-135m-instruct.gguf", gguf_file="model.gguf")
    assert len(content_digest(config)) == 64
