"""Four-bit students: what transformers is asked for, and with bitsandbytes a whole training."""

import importlib.util

import pytest
import torch
from tiny_study import TRAINING, TinyStudy, kv, weights
from transformers import AutoModelForCausalLM

from mtkv.config.arms import LoraConfig, TrainingConfig
from mtkv.models import adapters as quantized
from mtkv.models import load


def test_the_package_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install mtkv\[qlora\]"):
        quantized.four_bit(torch.bfloat16, "cuda")


def test_transformers_is_asked_for_nf4_with_double_quantisation(tmp_path, monkeypatch):
    """Stands in for bitsandbytes: the real call, as far as it goes without the package."""
    student = TinyStudy(tmp_path).models["student"]
    asked = {}

    class AskedError(Exception):
        pass

    def from_pretrained(*args, **options):
        asked.update(options)
        raise AskedError

    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(AskedError):
        load.load_model(student, quantized=True)
    config = asked["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.float32 == asked["dtype"]
    asked.clear()
    with pytest.raises(AskedError):
        load.load_model(student)
    assert "quantization_config" not in asked


def test_arms_from_before_the_field_keep_their_digests():
    assert "quantize" not in LoraConfig(rank=2).model_dump(mode="json")
    written = TrainingConfig(steps=1, lora={"quantize": "4bit"}).model_dump(mode="json")
    assert TrainingConfig.model_validate(written).lora.quantize == "4bit"


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra")
def test_adapters_trained_on_four_bits_are_saved_on_the_whole_weights(tmp_path, monkeypatch):
    study = TinyStudy(tmp_path)
    seen = []
    merged = load.load_model
    monkeypatch.setattr("mtkv.stages.train.load_model", lambda *a, **k: seen.append(merged(*a, **k)) or seen[-1])
    training = TRAINING.model_validate(TRAINING.model_dump() | {"lora": {"rank": 4, "quantize": "4bit"}})
    output, _ = study.train("qlora", kv(), training=training)
    kinds = [type(model.model.layers[0].mlp.up_proj).__name__ for model in seen]
    assert kinds[0] != kinds[1]  # trained on four bits, saved from the model's own
    raw = load.load_model(study.models["student"]).state_dict()
    for name, weight in weights(output).items():
        assert weight.dtype == raw[name].dtype
        change = weight - raw[name]
        assert name.endswith("proj.weight") or not change.any()
        if change.ndim == 2:
            assert torch.linalg.matrix_rank(change.float(), atol=1e-6) <= 4
