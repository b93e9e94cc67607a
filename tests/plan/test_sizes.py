"""Sizes of models from their files, against the models themselves."""

import pytest
import torch
from conftest import ARCHITECTURES, ENCODERS

from mtkv.config.models import POCKET_MODELS, ModelConfig
from mtkv.kv.capture import KVCapture
from mtkv.models.load import load_model
from mtkv.ops.cost_model.model_sizes import ModelSize, built_parameters, folder_size, model_size, stored_parameters


def counted(model):
    """Every parameter once, however many names it has."""
    return sum(weight.numel() for weight in {id(weight): weight for weight in model.parameters()}.values())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes_are_those_of_the_model(name, tied, build_model, tmp_path):
    model = build_model(name, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "weights")
    model.config.save_pretrained(tmp_path / "config")
    config = model.config.get_text_config()
    with torch.no_grad(), KVCapture(model) as capture:
        model(input_ids=torch.tensor([[3, 4, 5]]))
        keys = capture.keys(range(config.num_hidden_layers))
    widths = keys[0].shape[1], keys[0].shape[1] * keys[0].shape[3]
    expected = ModelSize(counted(model), len(keys), *widths, config.hidden_size, config.vocab_size)
    assert folder_size(tmp_path / "weights") == expected
    assert folder_size(tmp_path / "config") == expected


@pytest.mark.parametrize("name", ENCODERS)
def test_sizes_of_encoders(name, build_encoder, tmp_path):
    model = build_encoder(name)
    model.save_pretrained(tmp_path)
    assert stored_parameters(tmp_path) == built_parameters(tmp_path) == counted(model)
    heads = model.config.num_attention_heads
    width = model.get_parameter("encoder.block.0.layer.0.SelfAttention.k.weight" if name == "t5" else
                                "encoder.layer.0.attention.self.key.weight").shape[0]  # fmt: skip
    found = folder_size(tmp_path)
    assert (found.layers, found.kv_width) == (model.config.num_hidden_layers, width)
    assert width % heads == 0


@pytest.mark.parametrize("name", POCKET_MODELS)
def test_sizes_of_the_pocket_models(name):
    config = ModelConfig(name=name)
    assert model_size(config).parameters == counted(load_model(config))


def test_weights_in_several_files_are_added_up(build_model, tmp_path):
    model = build_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert stored_parameters(tmp_path) == counted(model)


def test_a_model_that_is_not_here_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("MTKV_ASSETS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert model_size(ModelConfig(source="hub", name="nobody/nothing")) is None
    assert model_size(ModelConfig(source="path", name=str(tmp_path / "absent"))) is None
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/config.json").write_text('{"model_type": "unheard-of"}')
    assert model_size(ModelConfig(source="path", name=str(tmp_path / "odd"))) is None


def test_the_config_in_the_hubs_cache_is_enough(build_model, tmp_path, monkeypatch):
    model = build_model("qwen3")
    commit = "0" * 40
    cache = tmp_path / "models--owner--name"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text(commit)
    model.config.save_pretrained(cache / "snapshots" / commit)
    monkeypatch.setenv("MTKV_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert model_size(ModelConfig(source="hub", name="owner/name")).parameters == counted(model)
