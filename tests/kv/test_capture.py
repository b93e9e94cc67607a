"""Captured K and V against hooks on the models' own projections and against the post-RoPE keys in transformers' cache."""

import pytest
import torch
from conftest import ARCHITECTURES, VOCABULARY
from transformers import DynamicCache

from mtkv.kv.capture import KVCapture

TIME = 11


def tokens(seed=0, batch=2, time=TIME):
    return torch.randint(3, VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(seed))


def projected(model, name, input_ids, head_dim):
    """K and V as the model's own modules produce them, [batch, kv_heads, time, head_dim] per layer."""
    keys, values, hooks = [], [], []

    def keep(found, start=None, stop=None):
        def hook(_module, _args, output):
            output = output if start is None else output[..., start:stop]
            heads = output if output.ndim == 4 else output.unflatten(-1, (-1, head_dim))
            found.append(heads if heads.shape[2] == TIME else heads.transpose(1, 2))

        return hook

    def per_head(_module, _args, output):  # gpt_neox packs (q, k, v) inside every head
        heads = output.unflatten(-1, (-1, 3 * head_dim)).transpose(1, 2)
        keys.append(heads[..., head_dim : 2 * head_dim])
        values.append(heads[..., 2 * head_dim :])

    config = model.config
    q_width = config.num_attention_heads * head_dim
    kv_width = getattr(config, "num_key_value_heads", config.num_attention_heads) * head_dim
    normed = any(path.endswith("k_norm") for path, _ in model.named_modules())
    for path, module in model.named_modules():
        leaf = path.rsplit(".", 1)[-1]
        if leaf == ("k_norm" if normed else "k_proj"):
            hooks.append(module.register_forward_hook(keep(keys)))
        elif leaf == "v_proj":
            hooks.append(module.register_forward_hook(keep(values)))
        elif leaf in ("qkv_proj", "c_attn"):
            hooks.append(module.register_forward_hook(keep(keys, q_width, q_width + kv_width)))
            hooks.append(module.register_forward_hook(keep(values, q_width + kv_width, q_width + 2 * kv_width)))
        elif leaf == "query_key_value":
            hooks.append(module.register_forward_hook(per_head))
    with torch.no_grad():
        model(input_ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return keys, values


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_keys_and_values_equal_the_models_own_projections(build_model, name):
    model, input_ids = build_model(name), tokens()
    with torch.no_grad(), KVCapture(model) as capture:
        model(input_ids, use_cache=False)
    keys, values = capture.keys(), capture.values()
    want_keys, want_values = projected(model, name, input_ids, keys[0].shape[-1])
    assert len(keys) == len(want_keys) == len(want_values) == 3
    for got, want in zip([*keys, *values], [*want_keys, *want_values], strict=True):
        torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "llama_yarn", "qwen3", "glm4", "gpt_neox"])
def test_the_cache_holds_rotated_keys_and_capture_does_not(build_model, name):
    model, input_ids = build_model(name), tokens()
    cache = DynamicCache()
    with torch.no_grad(), KVCapture(model) as capture:
        model(input_ids, use_cache=False)
        keys = capture.keys()
        model(input_ids, past_key_values=cache)
    rotated = cache.layers[1].keys
    assert (rotated[:, :, 3:] - keys[1][:, :, 3:]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_stay_equal_to_the_bit(build_model, name):
    model, input_ids = build_model(name), tokens()
    with torch.no_grad():
        plain = model(input_ids, use_cache=False).logits
        with KVCapture(model):
            recorded = model(input_ids, use_cache=False).logits
        after = model(input_ids, use_cache=False).logits
    assert torch.equal(plain, recorded)
    assert torch.equal(plain, after)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2", "opt"])
def test_gradient_reaches_the_weights_of_every_layer(build_model, name, checkpointing):
    model = build_model(name).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gradients = []
    for _ in range(2):
        model.zero_grad()
        with KVCapture(model) as capture:
            model(tokens(), use_cache=False)
        loss = sum(k.square().mean() + v.square().mean() for k, v in zip(capture.keys(), capture.values(), strict=True))
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.gradient_checkpointing_disable()
    own = [n for n in gradients[0] if any(part in n for part in ("k_proj", "v_proj", "c_attn"))]
    assert len({n.split(".")[-4] for n in own}) == 3 or len(own) >= 3
    for n in own:
        if n.endswith("weight"):
            assert gradients[0][n].abs().max() > 0, n
    if checkpointing:  # the second pass ran without it
        for n, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][n])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "opt"])
def test_padding_changes_no_kv_of_real_tokens(build_model, name, side):
    model, input_ids = build_model(name), tokens(batch=1)
    pad = torch.zeros(1, 3, dtype=torch.long)
    parts = [pad, input_ids] if side == "left" else [input_ids, pad]
    mask = torch.cat([torch.zeros_like(p) if p is pad else torch.ones_like(p) for p in parts], dim=1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    real = slice(3, None) if side == "left" else slice(0, TIME)
    with torch.no_grad():
        with KVCapture(model) as alone:
            model(input_ids, use_cache=False)
        with KVCapture(model) as padded:
            model(torch.cat(parts, dim=1), attention_mask=mask, position_ids=positions, use_cache=False)
    for got, want in zip(padded.keys() + padded.values(), alone.keys() + alone.values(), strict=True):
        torch.testing.assert_close(got[:, :, real], want, atol=1e-5, rtol=1e-4)


def test_a_model_outside_the_attention_interface_is_refused_by_name():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))
    with torch.no_grad(), KVCapture(model) as capture:
        model(tokens(), use_cache=False)
    with pytest.raises(NotImplementedError, match="BloomForCausalLM"):
        capture.keys()
