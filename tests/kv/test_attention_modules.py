"""Models without keys and values per token in every layer are refused by name, before or in their first forward."""

import pytest
import torch
import transformers
from conftest import GROUPED
from kv_references import tokens
from torch import nn

from mtkv.kv.attention_hooks import common_ancestors
from mtkv.kv.capture import KVCapture

EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}
LOW_RANK = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
GEMMA3N = {"head_dim": 8, "activation_sparsity_pattern": None, "laurel_rank": 4, "altup_num_inputs": 2}
NEXT = EXPERTS | {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
REFUSED = {
    "Mamba": ({}, "linear_attention"),
    "Jamba": (EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1}, "linear_attention"),
    "Qwen3Next": (NEXT, "linear_attention"),
    "FalconH1": ({}, "hybrid"),
    "Gemma3nText": (
        GEMMA3N | {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 64},
        "2 layers share",
    ),
    "DeepseekV3": (LOW_RANK | {"num_key_value_heads": 4, "first_k_dense_replace": 4}, "latent attention"),
    "Bloom": ({"n_layer": 4, "n_head": 4}, "attention interface"),
    "Falcon": ({}, "attention interface"),
    "GPTJ": ({"n_layer": 4, "n_head": 4, "n_embd": 32, "rotary_dim": 4}, "attention interface"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_forward_with_model_and_reason(name):
    options, reason = REFUSED[name]
    config = getattr(transformers, f"{name}Config")(**(GROUPED | {"num_hidden_layers": 4} | options))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(NotImplementedError, match=f"{name.removesuffix('Text')}ForCausalLM: .*{reason}"):
        KVCapture(model)


def test_gemma3n_without_shared_layers_is_not_refused():
    options = GEMMA3N | {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 64, "num_kv_shared_layers": 0}
    config = transformers.Gemma3nTextConfig(**(GROUPED | {"num_hidden_layers": 4} | options))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad(), KVCapture(model) as capture:
        model(tokens(), use_cache=False)
    norms = []
    for layer in model.model.layers:
        layer.self_attn.k_norm.register_forward_hook(lambda _module, _args, output: norms.append(output))
    with torch.no_grad():
        model(tokens(), use_cache=False)
    for got, want in zip(
        capture.keys(), norms, strict=True
    ):  # its rotary function takes one tensor, [batch, time, heads, …]
        torch.testing.assert_close(got, want.transpose(1, 2), atol=2e-6, rtol=1e-5)


def test_a_rotation_of_unknown_form_is_refused_in_the_first_forward():
    config = transformers.Llama4TextConfig(**(GROUPED | {"head_dim": 8, "num_local_experts": 1}))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with (
        torch.no_grad(),
        KVCapture(model),
        pytest.raises(NotImplementedError, match=r"Llama4TextAttention.*rotary_emb"),
    ):
        model(tokens(), use_cache=False)


def test_a_skipped_layer_is_noticed(build_model):
    model = build_model("llama")
    with torch.no_grad(), KVCapture(model) as capture:
        model.model.layers = nn.ModuleList(list(model.model.layers)[:2])
        model.config.num_hidden_layers = 2
        model(tokens(), use_cache=False)
    with pytest.raises(
        NotImplementedError, match=r"LlamaForCausalLM: recorded K and V of layers \[0, 1\], expected all 3"
    ):
        capture.keys()


@pytest.mark.parametrize("layers", [1, 3])
def test_common_ancestors_stand_above_the_list_of_layers(build_model, layers):
    model = build_model("opt", num_hidden_layers=layers)
    attentions = [layer.self_attn for layer in model.model.decoder.layers]
    assert common_ancestors(model, attentions) == [model, model.model, model.model.decoder]
