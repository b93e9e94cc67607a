"""`rope_scaling` against transformers' own rotary embeddings, and in a loaded model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mtkv.config.models import ModelConfig, RopeScaling
from mtkv.models.load import load_model, load_tokenizer
from mtkv.models.rope import SCALINGS, context_length, scale_rope

DIM, TRAINED, FACTOR = 16, 256, 2.0


def settings():
    return LlamaConfig(hidden_size=2 * DIM, num_attention_heads=2, max_position_embeddings=TRAINED)


def angles(config, time):
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(time)[None])
    return torch.atan2(sin, cos)[0, :, : DIM // 2].double()


def turns(base, positions):
    return positions.double()[:, None] * base ** (-torch.arange(0, DIM, 2).double() / DIM)


@pytest.mark.parametrize(
    ("method", "base", "divisor"),
    [
        ("ntk", 10000 * FACTOR ** (DIM / (DIM - 2)), 1),
        ("ntk_two_thirds", 10000 * FACTOR ** (2 / 3), 1),
        ("linear", 10000, FACTOR),
    ],
)
def test_the_models_own_rotary_code_turns_by_the_formula(method, base, divisor):
    config = settings()
    scale_rope(config, RopeScaling(method=method, factor=FACTOR))
    want = turns(base, torch.arange(20)) / divisor
    torch.testing.assert_close(angles(config, 20).cos(), want.cos(), atol=1e-5, rtol=0)
    assert config.max_position_embeddings == context_length(config) == TRAINED * FACTOR


def test_dynamic_changes_nothing_up_to_the_trained_length_and_has_room_beyond():
    config = settings()
    scale_rope(config, RopeScaling(method="dynamic", factor=FACTOR))
    assert (config.max_position_embeddings, context_length(config)) == (TRAINED, TRAINED * FACTOR)
    torch.testing.assert_close(angles(config, TRAINED), angles(settings(), TRAINED))
    time = int(TRAINED * 1.5)
    base = 10000 * (FACTOR * time / TRAINED - (FACTOR - 1)) ** (DIM / (DIM - 2))
    want = turns(base, torch.arange(time))
    torch.testing.assert_close(angles(config, time).cos(), want.cos(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", sorted(SCALINGS))
def test_every_kind_of_layer_is_scaled(method):
    config = Gemma3TextConfig(num_hidden_layers=6, max_position_embeddings=64)
    before = {name: dict(part) for name, part in config.rope_parameters.items()}
    scale_rope(config, RopeScaling(method=method, factor=4))
    assert before.keys() == config.rope_parameters.keys()
    assert len(before) == 2
    assert all(config.rope_parameters[name] != part for name, part in before.items())
    assert context_length(config) == 256


def test_what_cannot_be_scaled_is_refused():
    scaling = RopeScaling(method="ntk", factor=2)
    with pytest.raises(ValueError, match="gpt2 has no rotary positions"):
        scale_rope(GPT2Config(), scaling)
    config = settings()
    scale_rope(config, RopeScaling(method="linear", factor=2))
    with pytest.raises(ValueError, match=r"already scaled \(linear\)"):
        scale_rope(config, scaling)


def test_a_loaded_student_has_the_longer_context_and_saves_it(tmp_path):
    config = ModelConfig(name="student", rope_scaling={"method": "linear", "factor": 2})
    plain, model = load_model(ModelConfig(name="student")), load_model(config)
    assert load_tokenizer(config).reading.context == 2 * load_tokenizer(ModelConfig(name="student")).reading.context
    ids = torch.arange(10)[None] + 5
    with torch.no_grad():
        there = model(ids).logits
        assert not torch.allclose(there, plain(ids).logits, atol=1e-3)
        doubled = plain(ids, position_ids=torch.arange(10)[None] / 2).logits
        torch.testing.assert_close(there, doubled, atol=1e-4, rtol=1e-4)
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, there)
