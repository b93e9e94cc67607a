"""Keys that depend on the position after RoPE was taken back are refused, once per model and by name; learned positions are not."""

import pytest
import torch
import transformers
from conftest import ARCHITECTURES, ENCODERS, GROUPED
from tokenizers_for_tests import byte_level_bpe

from mtkv.kv.capture import KVCapture, check_keys
from mtkv.kv.extract import read_kv
from mtkv.models.tokenization import encode_rows
from mtkv.original_api.extractor import TeacherKVExtractor

HEADS = {"num_hidden_layers": 2, "head_dim": 8}


def build(name, **options):
    """A model whose norms are not all ones, as after training."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(GROUPED | options))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for path, weight in model.named_parameters():
        if "norm" in path:
            weight.data += torch.randn(weight.shape)
    return model


@pytest.mark.parametrize("name", ["HunYuanDenseV1", "HunYuanMoEV1"])
def test_norms_behind_rope_are_refused_by_name_before_any_kv_is_kept(name):
    tokenizer = byte_level_bpe()
    model = build(name, vocab_size=len(tokenizer), **HEADS)
    ids = torch.full((1, 16), 7)
    with torch.no_grad(), KVCapture(model) as capture:
        model(ids, use_cache=False)
    key = capture.keys()[0]
    assert (key - key[:, :, :1]).norm(dim=-1).max() > 0.1 * key.norm(dim=-1).max(), "one token, not one key"
    refused = pytest.raises(
        NotImplementedError, match=f"{name}ForCausalLM: in layer 0 the keys .* differ by [1-9][0-9]%"
    )
    with refused:
        list(read_kv(model, encode_rows(tokenizer, ["1 2"], [" 3"]), [0], 1))
    with refused:
        TeacherKVExtractor(model=model, tokenizer=tokenizer).extract_kvs(["1 2"])


@pytest.mark.parametrize("name", ["Qwen3", "Llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_before_rope_are_not(name, dtype):
    check_keys(build(name, **HEADS).to(dtype))


@pytest.mark.parametrize("name", [*ARCHITECTURES, *ENCODERS])
def test_learned_positions_partial_rotations_and_biases_are_not(name, build_model, build_encoder):
    model = build_model(name) if name in ARCHITECTURES else build_encoder(name)
    check_keys(model.train())
    assert model.training


def test_a_model_is_looked_at_once(build_model):
    model, seen = build_model("llama"), []
    model.register_forward_hook(lambda *_: seen.append(1))
    model.model.register_forward_hook(lambda *_: seen.append(1))
    for _ in range(3):
        check_keys(model)
    assert len(seen) == 1
