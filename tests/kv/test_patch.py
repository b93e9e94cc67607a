"""Injected KV: the model's own changes nothing, another row's equals hooks on the projections, gradients reach it."""

import pytest
import torch
from conftest import ARCHITECTURES
from kv_references import TIME, replaced_projections, tokens
from torch.nn.functional import cross_entropy

from mtkv.kv.capture import KVCapture
from mtkv.kv.patch import KVInjection


def packed(capture):
    """[batch, time, layers, 2, width]"""
    pairs = zip(capture.keys(), capture.values(), strict=True)
    flat = [torch.stack([x.transpose(1, 2).flatten(2) for x in pair], dim=2) for pair in pairs]
    return torch.stack(flat, dim=2)


def read(model, input_ids, **inputs):
    with torch.no_grad(), KVCapture(model) as capture:
        logits = model(input_ids, use_cache=False, **inputs).logits
    return capture, logits


def some_positions(seed=0, batch=2):
    return torch.rand(batch, TIME, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_injecting_the_models_own_kv_changes_nothing(build_model, name):
    model = build_model(name)
    capture, plain = read(model, tokens())
    other, _ = read(model, tokens(1))
    for mask in (torch.ones(2, TIME, dtype=torch.bool), some_positions()):
        with torch.no_grad(), KVInjection(model, packed(capture), mask):
            injected = model(tokens(), use_cache=False).logits
        torch.testing.assert_close(injected, plain, atol=1e-5, rtol=1e-4)
        with torch.no_grad(), KVInjection(model, packed(other), mask):
            assert (model(tokens(), use_cache=False).logits - plain).abs().max() > 1e-4  # another row's does change it
    with torch.no_grad():
        assert torch.equal(model(tokens(), use_cache=False).logits, plain)  # nothing stays behind


@pytest.mark.parametrize("name", ["llama", "llama_mqa_wide", "llama_yarn"])
def test_another_rows_kv_equals_replaced_projections(build_model, name):
    model, mask = build_model(name), some_positions()
    other, _ = read(model, tokens(1))
    with torch.no_grad():
        with replaced_projections(model, other.keys(), other.values(), mask):
            want = model(tokens(), use_cache=False).logits
        with KVInjection(model, packed(other), mask):
            got = model(tokens(), use_cache=False).logits
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_positions_under_left_padding_are_the_models_own(build_model):
    model, input_ids = build_model("llama"), tokens()
    other, _ = read(model, tokens(1))
    attention_mask = torch.ones(2, TIME, dtype=torch.long)
    attention_mask[0, :3] = 0
    inputs = {"attention_mask": attention_mask, "position_ids": (attention_mask.cumsum(1) - 1).clamp_min(0)}
    with torch.no_grad():
        with replaced_projections(model, other.keys(), other.values(), some_positions()):
            want = model(input_ids, use_cache=False, **inputs).logits
        with KVInjection(model, packed(other), some_positions()):
            got = model(input_ids, use_cache=False, **inputs).logits
    torch.testing.assert_close(got[attention_mask.bool()], want[attention_mask.bool()], atol=1e-6, rtol=1e-5)


def test_an_empty_mask_changes_not_a_bit(build_model):
    model = build_model("qwen3")
    capture, plain = read(model, tokens())
    with torch.no_grad(), KVInjection(model, packed(capture) * 100, torch.zeros(2, TIME, dtype=torch.bool)):
        assert torch.equal(model(tokens(), use_cache=False).logits, plain)


def ce(model, input_ids, block):
    with block:
        logits = model(input_ids, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "gpt_neox", "opt"])
def test_the_gradient_of_the_ce_reaches_the_masked_kv_and_only_that(build_model, name):
    model, mask = build_model(name).train(), some_positions()
    mask[:, -1] = True  # the last token predicts nothing
    kv = packed(read(model, tokens(1))[0]).requires_grad_()
    ce(model, tokens(), KVInjection(model, kv, mask)).backward()
    gradient, reached = kv.grad[:, :-1], mask[:, :-1]
    assert (gradient[reached].abs().amax(-1) > 0).all()  # every layer, K and V
    assert (gradient[~reached] == 0).all()
    assert (kv.grad[:, -1] == 0).all()


def test_the_gradient_equals_that_of_replaced_projections(build_model):
    model, mask = build_model("llama"), some_positions()
    other = read(model, tokens(1))[0]
    keys, values = ([x.detach().requires_grad_() for x in found] for found in (other.keys(), other.values()))
    ce(model, tokens(), replaced_projections(model, keys, values, mask)).backward()
    kv = packed(other).requires_grad_()
    ce(model, tokens(), KVInjection(model, kv, mask)).backward()
    for layer in range(3):
        for kind, want in enumerate((keys[layer].grad, values[layer].grad)):
            torch.testing.assert_close(
                kv.grad[:, :, layer, kind], want.transpose(1, 2).flatten(2), atol=1e-8, rtol=1e-3
            )


def test_the_gradient_is_the_slope_of_the_loss(build_model):
    kv = packed(read(build_model("gpt2"), tokens(1))[0]).double().requires_grad_()
    model, mask = build_model("gpt2").double(), some_positions()

    def loss(given):
        return ce(model, tokens(), KVInjection(model, given, mask))

    loss(kv).backward()
    direction = torch.randn(kv.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        slope = (loss(kv + 1e-5 * direction) - loss(kv - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close(slope, (kv.grad * direction).sum(), rtol=1e-5, atol=1e-9)


def test_capture_inside_injection_sees_the_injected_kv(build_model):
    model, mask = build_model("llama"), some_positions()
    other, _ = read(model, tokens(1))
    with torch.no_grad(), KVInjection(model, packed(other), mask), KVCapture(model) as seen:
        model(tokens(), use_cache=False)
    torch.testing.assert_close(packed(seen)[mask], packed(other)[mask], atol=1e-6, rtol=1e-5)


def test_an_encoder_can_be_injected(build_encoder):
    model = build_encoder("t5")
    encoder = model.get_encoder()
    with torch.no_grad(), KVCapture(model) as capture:
        encoder(tokens())
    with torch.no_grad():
        plain = encoder(tokens()).last_hidden_state
        with KVInjection(model, packed(capture), some_positions()):
            injected = encoder(tokens()).last_hidden_state
    torch.testing.assert_close(injected, plain, atol=1e-6, rtol=1e-5)


def test_what_would_go_wrong_silently_is_refused(build_model):
    model, mask = build_model("llama"), some_positions()
    kv = packed(read(model, tokens())[0])
    with pytest.raises(ValueError, match=r"\[batch, time, 3, 2, width\]"):
        KVInjection(model, kv[:, :, :2], mask)
    with pytest.raises(ValueError, match="mask"):
        KVInjection(model, kv, mask[:1])
    with KVInjection(model, kv[:, 1:], mask[:, 1:]), pytest.raises(ValueError, match="layer 0: kv"):
        model(tokens(), use_cache=False)
    with KVInjection(model, kv[..., 1:], mask), pytest.raises(ValueError, match="layer 0: kv"):
        model(tokens(), use_cache=False)
    with KVInjection(model, kv, mask), pytest.raises(ValueError, match="use_cache=False"):
        model(tokens(), use_cache=True)
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(RuntimeError, match="gradient_checkpointing_disable"):
        KVInjection(model, kv, mask)
