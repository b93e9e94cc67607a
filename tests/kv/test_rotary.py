"""Un-rotation is the inverse of rotation, for any cos and sin, and rotation agrees with complex multiplication."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.glm4.modeling_glm4 import Glm4Attention
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.phi.modeling_phi import PhiAttention

from mtkv.kv.rotary import rotate, unrotate

HEAD_DIM = 8


def attention(kind, rotary_ndims=None):
    """An attention module of that class without weights: only its modeling file counts."""
    module = kind.__new__(kind)
    torch.nn.Module.__init__(module)
    if rotary_ndims is not None:
        module.rotary_ndims = rotary_ndims
    return module


MODULES = {
    "llama": (attention(LlamaAttention), 8),
    "glm4": (attention(Glm4Attention), 4),
    "gpt_neox": (attention(GPTNeoXAttention), 4),
    "phi": (attention(PhiAttention, 4), 4),
}


def cos_sin(angles, scaling):
    doubled = torch.cat([angles, angles], dim=-1)
    return doubled.cos() * scaling, doubled.sin() * scaling


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(MODULES)),
    seed=st.integers(0, 2**31),
    scaling=st.floats(0.1, 10.0),
    time=st.integers(0, 6),
    kv_heads=st.integers(1, 3),
)
def test_unrotate_undoes_rotate(name, seed, scaling, time, kv_heads):
    module, rotary_dim = MODULES[name]
    generator = torch.Generator().manual_seed(seed)
    angles = torch.rand(2, time, rotary_dim // 2, generator=generator, dtype=torch.float64) * 1000
    cos, sin = cos_sin(angles, scaling)
    key = torch.randn(2, kv_heads, time, HEAD_DIM, generator=generator, dtype=torch.float64)
    turned = rotate(key, cos, sin, module)
    torch.testing.assert_close(unrotate(turned, cos, sin, module), key, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(rotate(unrotate(key, cos, sin, module), cos, sin, module), key, atol=1e-10, rtol=1e-10)
    assert torch.equal(turned[..., rotary_dim:], key[..., rotary_dim:])  # partial rotary leaves the rest alone
    norms = turned[..., :rotary_dim].norm(dim=-1), key[..., :rotary_dim].norm(dim=-1) * scaling
    torch.testing.assert_close(*norms, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_rotation_is_multiplication_by_a_complex_number(name):
    module, rotary_dim = MODULES[name]
    angles = torch.arange(5.0)[None, :, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])[: rotary_dim // 2]
    key = torch.randn(1, 2, 5, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    half = rotary_dim // 2
    number = torch.complex(key[..., :half], key[..., half:rotary_dim]) * torch.polar(torch.tensor(math.sqrt(2)), angles)
    want = torch.cat([number.real, number.imag, key[..., rotary_dim:]], dim=-1)
    torch.testing.assert_close(rotate(key, *cos_sin(angles, math.sqrt(2)), module), want)


def test_a_module_without_rotary_function_is_refused():
    with pytest.raises(NotImplementedError, match="Linear"):
        rotate(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 2), torch.zeros(1, 1, 2), torch.nn.Linear(1, 1))
