"""RoPE scaling against the rotary embedding of transformers' own Llama."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from mtkv.original_api.rope_translation import SCALING_METHODS, MultiTeacherRoPEScaler

DIM, TIME = 16, 60


def llama_keys(key, base=10000.0, length=2048, **rope):
    parameters = {"rope_type": "default", "rope_theta": base} | rope
    config = LlamaConfig(
        hidden_size=DIM * 2, num_attention_heads=2, max_position_embeddings=length, rope_parameters=parameters
    )
    cos, sin = LlamaRotaryEmbedding(config)(key, torch.arange(key.shape[-2])[None])
    return apply_rotary_pos_emb(key, key, cos, sin)[1]


@pytest.fixture
def raw():
    return torch.randn(2, 3, TIME, DIM, generator=torch.Generator().manual_seed(0))


def scaled(key, teacher, student_length, method="ntk", **options):
    value = torch.randn_like(key)
    scaler = MultiTeacherRoPEScaler([teacher], student_length, scaling_method=method, **options)
    (turned,), (kept,) = scaler.scale_kv_pairs([key], [value])
    assert kept is value
    return turned


@pytest.mark.parametrize("method", sorted(SCALING_METHODS))
def test_nothing_happens_where_base_and_length_agree(raw, method):
    key = llama_keys(raw)
    assert torch.equal(scaled(key, (10000, 2048), 2048, method), key)
    assert torch.equal(scaled(key, (10000, 2048), 2048, method, student_base=10000), key)


def test_ntk_and_its_two_thirds(raw):
    for stretch in (4.0, 0.5):
        length = int(2048 * stretch)
        for method, exponent in (("ntk", DIM / (DIM - 2)), ("ntk_two_thirds", 2 / 3)):
            want = llama_keys(raw, base=10000 * stretch**exponent)
            torch.testing.assert_close(
                scaled(llama_keys(raw), (10000, 2048), length, method), want, atol=1e-4, rtol=1e-4
            )


def test_ntk_stretches_the_slowest_channel_by_the_factor():
    slowest = torch.zeros(1, 1, 2, DIM)
    slowest[..., DIM // 2 - 1] = 1
    turned = scaled(llama_keys(slowest, base=100.0), (100, 10), 40)
    angle = torch.atan2(turned[0, 0, 1, -1], turned[0, 0, 1, DIM // 2 - 1])
    assert angle.item() == pytest.approx(100 ** (-(DIM - 2) / DIM) / 4, rel=1e-4)


def test_linear(raw):
    want = llama_keys(raw, rope_type="linear", factor=3.0)
    torch.testing.assert_close(scaled(llama_keys(raw), (10000, 100), 300, "linear"), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("trained", [20, 100])
def test_dynamic(raw, trained):
    want = llama_keys(raw, length=trained, rope_type="dynamic", factor=3.0)
    torch.testing.assert_close(
        scaled(llama_keys(raw), (10000, trained), 3 * trained, "dynamic"), want, atol=1e-4, rtol=1e-4
    )
    assert torch.equal(want, llama_keys(raw)) == (trained > TIME)  # it starts beyond the trained length


def test_another_base_is_turned_once_and_back(raw):
    turned = scaled(llama_keys(raw), (10000, 2048), 2048, student_base=5e5)
    torch.testing.assert_close(turned, llama_keys(raw, base=5e5), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(turned, llama_keys(llama_keys(raw), base=5e5), atol=0.1)
    torch.testing.assert_close(
        scaled(turned, (5e5, 2048), 2048, student_base=1e4), llama_keys(raw), atol=1e-4, rtol=1e-4
    )


def test_dtype_and_flat_keys_are_kept(raw):
    half = scaled(llama_keys(raw).bfloat16(), (10000, 2048), 4096)
    assert half.dtype == torch.bfloat16
    flat = scaled(llama_keys(raw)[:, 0], (10000, 2048), 4096)
    torch.testing.assert_close(flat, scaled(llama_keys(raw), (10000, 2048), 4096)[:, 0])


def test_wrong_calls_are_refused(raw):
    with pytest.raises(ValueError, match="'yarn' is not one of ntk"):
        MultiTeacherRoPEScaler([(10000, 2048)], 2048, scaling_method="yarn")
    with pytest.raises(ValueError, match="1 teachers, but 2 keys"):
        MultiTeacherRoPEScaler([(10000, 2048)], 2048).scale_kv_pairs([raw, raw], [raw])
