"""`rope_scaling` against transformers' own rotary embeddings, and in a loaded model."""

import numpy as np
import pytest
import torch
import transformers
from tokenizers_for_tests import byte_level_bpe
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mtkv.config.models import ModelConfig, RopeScaling
from mtkv.evaluate.lm_eval_model import EvaluationModel, load_folder
from mtkv.kv.extract import read_kv
from mtkv.models.load import load_model, load_tokenizer
from mtkv.models.rope_scaling import SCALINGS, context_length, scale_rope
from mtkv.models.tokenization import EncodedRow, encode_rows

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


def kv_of(model, rows):
    encoded = [EncodedRow(row, row, row, row > 0) for row in rows]
    return list(read_kv(model, encoded, range(model.config.num_hidden_layers), batch_size=2))


def test_dynamic_is_fixed_at_the_longest_row_so_that_rows_do_not_depend_on_each_other(tmp_path):
    """30 % off before, and a model that had read a long row read shorter ones otherwise."""
    config = ModelConfig(name="student", rope_scaling={"method": "dynamic", "factor": 4})
    model, reading = load_model(config), load_tokenizer(config).reading
    assert reading.context == 4 * load_tokenizer(ModelConfig(name="student")).reading.context
    rows = [np.arange(5, 5 + length) % 250 + 5 for length in (44, reading.context)]
    (alone,) = kv_of(model, rows[:1])
    for rows_of_batch in (rows, rows[:1]):
        torch.testing.assert_close(kv_of(model, rows_of_batch)[0], alone, atol=1e-5, rtol=1e-4)
    growing = settings()
    growing.rope_parameters |= {"rope_type": "dynamic", "factor": 4.0}
    fixed = settings()
    scale_rope(fixed, RopeScaling(method="dynamic", factor=4))
    torch.testing.assert_close(angles(fixed, 4 * TRAINED).cos(), angles(growing, 4 * TRAINED).cos(), atol=1e-3, rtol=0)
    model.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(kv_of(saved, rows[:1])[0], alone, atol=1e-5, rtol=1e-4)
    assert context_length(saved.config) == reading.context


CHANGING = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "longrope": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 16,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "rope_theta": 10000.0,
    },
}


@pytest.mark.parametrize("kind", CHANGING)
def test_a_rope_that_changes_with_the_batch_ends_where_it_begins_to_change(kind, tmp_path, model_folder):
    length = {"dynamic": 16, "longrope": 64}[kind]
    folder = model_folder(
        "llama", tmp_path, rope_parameters=CHANGING[kind], max_position_embeddings=length, initializer_range=0.5
    )
    config = ModelConfig(source="path", name=str(folder))
    tokenizer, model = load_tokenizer(config), load_model(config)
    assert tokenizer.reading.context == EvaluationModel(*load_folder(folder), 1).max_length == 16
    with pytest.raises(ValueError, match="more than its context of 16"):
        encode_rows(tokenizer, ["1 2 3 4 5 6 7 8 9"], [" 10 11 12 13 14 15 16"])
    rows = [np.arange(5, 5 + count) for count in (7, 16, 60)]
    (alone,) = kv_of(model, rows[:1])
    # Rounding differs with the instructions of the CPU; the fault is 100 times larger.
    torch.testing.assert_close(kv_of(model, rows[:2])[0], alone, atol=1e-4, rtol=0)
    assert (kv_of(model, [rows[0], rows[2]])[0] - alone).abs().max() > 0.01, (
        "where it changes, rows do depend on others"
    )


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


PADDED = [
    "Roberta",
    "XLMRoberta",
    "XLMRobertaXL",
    "Camembert",
    "Data2VecText",
    "RobertaPreLayerNorm",
    "MPNet",
    "Longformer",
    "Luke",
    "Esm",
]
UNPADDED = ["Bert", "Electra", "DistilBert", "GPT2", "OPT", "Llama"]


@pytest.mark.parametrize("name", PADDED + UNPADDED)
def test_the_context_is_as_long_as_the_model_can_read_and_no_longer(name):
    """RoBERTa counts positions from behind its padding id: 66 in the config are 64 tokens."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 60,
    }
    own = {"attention_window": [4]} if name == "Longformer" else {"entity_vocab_size": 9} if name == "Luke" else {}
    config = getattr(transformers, f"{name}Config")(max_position_embeddings=66, pad_token_id=1, **sizes, **own)
    context = context_length(config)
    assert context == (64 if name in PADDED else 66)
    model = transformers.AutoModel.from_config(config).eval()
    if name == "Llama":  # whose positions end nowhere
        return
    with torch.no_grad():
        model(torch.full((1, context), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, context + 1), 7))


def test_a_row_of_one_token_more_is_refused_before_the_model_reads_it(tmp_path):
    tokenizer = byte_level_bpe()
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=66, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelConfig(source="path", name=str(tmp_path)))
    usable = 66 - tokenizer.pad_token_id - 1
    rows = {length: " ".join("1" for _ in range(length)) for length in range(20, 66)}
    lengths = {length: len(byte_level_bpe()(text)["input_ids"]) + 1 for length, text in rows.items()}
    for length, text in rows.items():
        if lengths[length] > usable:
            with pytest.raises(ValueError, match=f"more than its context of {usable}"):
                encode_rows(loaded, [text], [""])
        else:
            encode_rows(loaded, [text], [""])
    assert min(lengths.values()) <= usable < max(lengths.values())
