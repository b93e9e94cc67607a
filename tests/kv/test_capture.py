"""Captured K, V and Q against hooks on the models' own projections and against the post-RoPE keys in transformers' cache."""

import pytest
import torch
import transformers
from conftest import ARCHITECTURES, GROUPED
from kv_references import TIME, heads, outputs, projected_kv, tokens
from transformers import DynamicCache, StaticCache

from mtkv.kv.capture import KVCapture, check_keys
from mtkv.kv.rotary import rotate

CLOSE = {"atol": 2e-6, "rtol": 1e-5}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": LLAMA3 | {"original_max_position_embeddings": 8},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8, "attention_factor": 1.7},
}
MORE = {  # which of the four layers rotate their keys; half of Phi's channels turn, cut off outside its rotary function
    "SmolLM3Config": ({"no_rope_layer_interval": 2}, [True, False, True, False]),
    "Cohere2Config": ({"sliding_window": 4}, [True, True, True, False]),
    "PhiConfig": ({}, [True] * 4),
    "GptOssConfig": ({"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}, [True] * 4),
}


def captured(model, *args, **inputs):
    with torch.no_grad(), KVCapture(model) as capture:
        model(*args, **({"use_cache": False} | inputs))
    return capture


def assert_all_close(got, want, **tolerance):
    assert len(got) == len(want) > 0
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left, right, **(CLOSE | tolerance))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_keys_and_values_equal_the_models_own_projections(build_model, name):
    model = build_model(name)
    capture = captured(model, tokens())
    keys, values = projected_kv(model, tokens(), capture.keys()[0].shape[-1])
    assert len(keys) == 3
    assert_all_close(capture.keys(), keys)
    assert_all_close(capture.values(), values)


@pytest.mark.parametrize("name", MORE)
def test_layers_without_rope_and_odd_rotary_functions(name):
    options, rotates = MORE[name]
    config = getattr(transformers, name)(**(GROUPED | {"num_hidden_layers": 4} | options))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    check_keys(model)
    capture = captured(model, tokens())
    assert [capture.rotary(layer) is not None for layer in range(4)] == rotates
    keys, values = projected_kv(model, tokens(), capture.keys()[0].shape[-1])
    assert_all_close(capture.keys(), keys)
    assert_all_close(capture.values(), values)


@pytest.mark.parametrize("rope", ROPES)
def test_scaled_rotary(build_model, rope):
    model = build_model("llama", rope_parameters=ROPES[rope] | {"rope_theta": 10000.0}, max_position_embeddings=8)
    capture = captured(model, tokens())
    assert_all_close(capture.keys(), projected_kv(model, tokens(), 8)[0])
    plain = captured(build_model("llama"), tokens())
    assert (capture.rotary(0)[0] - plain.rotary(0)[0]).abs().max() > 1e-2  # the scaling was on


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_head_counts_and_a_head_width_of_its_own(build_model, kv_heads):
    capture = captured(build_model("llama", num_key_value_heads=kv_heads, head_dim=12), tokens())
    assert {x.shape for x in capture.keys() + capture.values()} == {(2, kv_heads, TIME, 12)}


def test_half_precision_keys_are_as_precise_as_their_rotation(build_model):
    model = build_model("llama", rope_parameters=ROPES["yarn"] | {"rope_theta": 10000.0}).bfloat16()
    for got, want in zip(captured(model, tokens()).keys(), projected_kv(model, tokens(), 8)[0], strict=True):
        assert got.dtype == torch.bfloat16
        error = (got.float() - want.float()).norm() / want.float().norm()
        assert error < 0.003  # 0.0025 measured; un-rotated in bfloat16 it is 0.0037


@pytest.mark.parametrize("name", ["llama", "qwen3", "glm4", "gpt_neox", "gpt2", "opt"])
def test_queries_equal_the_models_own(build_model, name):
    model = build_model(name)
    with torch.no_grad(), KVCapture(model, queries=True) as capture:
        model(tokens(), use_cache=False)
    queries, d = capture.queries(), capture.queries()[0].shape[-1]
    leaf = {"qwen3": "q_norm", "gpt2": "c_attn", "gpt_neox": "query_key_value"}.get(name, "q_proj")
    want = outputs(model, {leaf}, lambda: model(tokens(), use_cache=False))
    if name == "gpt_neox":
        want = [w.unflatten(-1, (-1, 3 * d))[..., :d].transpose(1, 2) for w in want]
    factor = d**-0.5 if name == "opt" else 1.0  # OPT scales its queries itself
    assert capture.scaling(0) == pytest.approx(1.0 if name == "opt" else d**-0.5)
    assert_all_close(queries, [heads(w[..., : 4 * d], d) * factor if w.ndim == 3 else heads(w, d) for w in want])


def test_queries_are_kept_only_on_request(build_model):
    with pytest.raises(ValueError, match="queries=True"):
        captured(build_model("llama"), tokens()).queries()


@pytest.mark.parametrize("name", ["llama", "llama_yarn", "qwen3", "gemma3", "phi3", "glm4", "gpt_neox", "gpt2"])
def test_rotating_back_gives_the_keys_of_the_cache(build_model, name):
    model, cache = build_model(name), DynamicCache()
    capture = captured(model, tokens(), use_cache=True, past_key_values=cache)
    for layer, key in enumerate(capture.keys()):
        rotary = capture.rotary(layer)
        assert (rotary is None) == (name == "gpt2")
        if rotary is not None:
            assert (key - cache.layers[layer].keys)[:, :, 3:].abs().max() > 1e-3
            key = rotate(key, *rotary, capture.layers[layer])
        torch.testing.assert_close(key, cache.layers[layer].keys, **CLOSE)
        torch.testing.assert_close(capture.values()[layer], cache.layers[layer].values)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2"])
def test_with_a_filled_cache_the_new_tokens_are_recorded(build_model, name):
    model, input_ids = build_model(name), tokens()
    whole = captured(model, input_ids)
    with torch.no_grad():
        cache = model(input_ids[:, :6], use_cache=True).past_key_values
    rest = captured(model, input_ids[:, 6:], past_key_values=cache, use_cache=True)
    assert_all_close(rest.keys(), [x[:, :, 6:] for x in list(whole.keys())], atol=1e-5, rtol=1e-4)
    assert_all_close(rest.values(), [x[:, :, 6:] for x in whole.values()], atol=1e-5, rtol=1e-4)


def test_a_static_cache_is_refused(build_model):
    model = build_model("llama")
    with pytest.raises(NotImplementedError, match="StaticCache"):
        captured(model, tokens(), use_cache=True, past_key_values=StaticCache(model.config, max_cache_len=32))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_stay_equal_to_the_bit(build_model, name, implementation):
    model, input_ids = build_model(name), tokens()
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        plain = model(input_ids, use_cache=False).logits
        with KVCapture(model), KVCapture(model):
            recorded = model(input_ids, use_cache=False).logits
        after = model(input_ids, use_cache=False).logits
    assert torch.equal(plain, recorded)
    assert torch.equal(plain, after)
    assert model.config._attn_implementation == implementation


def test_everything_is_put_back_when_the_block_fails(build_model):
    from transformers.models.llama import modeling_llama

    model, original = build_model("llama"), modeling_llama.apply_rotary_pos_emb
    with pytest.raises(IndexError), KVCapture(model):  # noqa: PT012
        assert modeling_llama.apply_rotary_pos_emb is not original
        model(tokens() + 1000)
    assert modeling_llama.apply_rotary_pos_emb is original
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_first_pass_counts_until_clear(build_model):
    model = build_model("llama")
    with torch.no_grad(), KVCapture(model) as capture:
        model(tokens(0), use_cache=False)
        first = capture.keys()
        model(tokens(1), use_cache=False)
        assert all(torch.equal(a, b) for a, b in zip(first, capture.keys(), strict=True))
        capture.clear()
        with pytest.raises(RuntimeError, match="nothing recorded"):
            capture.keys()
        model(tokens(1), use_cache=False)
    assert not torch.equal(first[0], capture.keys()[0])
    assert torch.equal(capture.keys()[0], captured(model, tokens(1)).keys()[0])


def kv_gradients(model):
    """Gradient of a loss on K and V alone, parameter by parameter."""
    model.zero_grad()
    with KVCapture(model) as capture:
        model(tokens(), use_cache=False)
    sum(x.square().mean() for x in capture.keys() + capture.values()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_loss_on_kv_alone_reaches_every_layer_with_and_without_checkpointing(build_model, name):
    model = build_model(name).train()
    plain = kv_gradients(model)
    projections = ("k_proj", "v_proj", "c_attn", "qkv_proj", "query_key_value")
    own = [n for n in plain if n.endswith("weight") and n.split(".")[-2] in projections]
    assert len({next(part for part in n.split(".") if part.isdigit()) for n in own}) == 3
    assert all(plain[n].abs().max() > 0 for n in own)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for n, gradient in kv_gradients(model).items():
        torch.testing.assert_close(gradient, plain[n])


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_reentrant_checkpointing_names_its_fix_and_never_trains_nothing(build_model, name):
    model = build_model(name).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(RuntimeError, match="use_reentrant': False"):
        kv_gradients(model)
    assert len(captured(model, tokens()).keys()) == 3  # without gradient there is nothing to lose


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_changes_no_kv_of_real_tokens(build_model, name, side):
    model, input_ids = build_model(name), tokens(batch=1)
    pad = torch.zeros(1, 3, dtype=torch.long)
    parts = [pad, input_ids] if side == "left" else [input_ids, pad]
    mask = torch.cat([torch.zeros_like(p) if p is pad else torch.ones_like(p) for p in parts], dim=1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    real = slice(3, None) if side == "left" else slice(0, TIME)
    alone = captured(model, input_ids)
    padded = captured(model, torch.cat(parts, dim=1), attention_mask=mask, position_ids=positions)
    got = [x[:, :, real] for x in padded.keys() + padded.values()]
    assert_all_close(got, alone.keys() + alone.values(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_sliding_windows_are_narrower_than_the_row_and_kept(build_model, name):
    narrow, wide = (captured(build_model(name, sliding_window=w), tokens()).keys() for w in (4, 64))
    assert_all_close(narrow[:1], wide[:1])  # the first layer's keys depend on no attention
    assert (narrow[1][:, :, 5:] - wide[1][:, :, 5:]).abs().max() > 1e-5  # here the window shows


def test_an_encoders_keys_and_values(build_encoder):
    model = build_encoder("bert")
    with torch.no_grad(), KVCapture(model) as capture:
        model(tokens())
    for leaf, got in (("key", capture.keys()), ("value", capture.values())):
        assert_all_close(got, [heads(o, 8) for o in outputs(model, {leaf}, lambda: model(tokens()))])
        assert len(got) == 3


@pytest.mark.parametrize("part", [None, "encoder", "decoder", "cross"])
def test_each_part_of_an_encoder_decoder_by_itself(build_encoder, part):
    model, inputs = build_encoder("t5"), {"input_ids": tokens(), "decoder_input_ids": tokens(1, time=7)}
    with torch.no_grad(), KVCapture(model, part=part, queries=True) as capture:
        model(**inputs)
    stack = {"encoder": model.encoder, "decoder": model.decoder, "cross": model.decoder}[part or "encoder"]
    inner = "EncDecAttention" if part == "cross" else "SelfAttention"
    attentions = [m for path, m in stack.named_modules() if path.endswith(inner)]
    assert len(capture.keys()) == len(attentions) == (3 if part in (None, "encoder") else 2)
    for leaf, got in (("k", capture.keys()), ("v", capture.values()), ("q", capture.queries())):
        want = [outputs(attention, {leaf}, lambda: model(**inputs))[0] for attention in attentions]
        assert_all_close(got, [w.unflatten(-1, (4, 12)).transpose(1, 2) for w in want])
    assert capture.scaling(0) == 1.0


def test_the_encoder_can_run_alone_and_another_part_then_has_nothing(build_encoder):
    model = build_encoder("t5")
    with torch.no_grad(), KVCapture(model) as capture, KVCapture(model, part="decoder") as decoder:
        model.get_encoder()(tokens())
    assert len(capture.keys()) == 3
    with pytest.raises(RuntimeError, match="nothing recorded"):
        decoder.keys()


def test_a_part_that_the_model_lacks_is_named(build_model, build_encoder):
    with pytest.raises(ValueError, match="LlamaForCausalLM: no part 'encoder'"):
        KVCapture(build_model("llama"), part="encoder")
    with pytest.raises(ValueError, match=r"T5Model: no part 'middle', it has \['cross', 'decoder', 'encoder'\]"):
        KVCapture(build_encoder("t5"), part="middle")
