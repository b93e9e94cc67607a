"""Heads, router and files of a fuser."""

import pytest
import torch

from mtkv.align.closed_form_maps import fit_map
from mtkv.config.kv import KVConfig
from mtkv.config.models import ModelConfig
from mtkv.inject.fuser import HEADS, KVFuser

LAYERS, WIDTH, TOKENS, ROWS = 3, 6, 40, 4
WIDTHS = {"a": 10, "b": 8}
MODELS = {name: ModelConfig(source="path", name=f"folder/{name}") for name in WIDTHS}
SAMPLE = torch.arange(TOKENS) % ROWS


def kvs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(TOKENS, LAYERS, 2, WIDTH, generator=generator) * 3 + 1
    return own, [torch.randn(TOKENS, LAYERS, 2, width, generator=generator) for width in WIDTHS.values()]


def fuser(trained=True, **config):
    own, theirs = kvs(9)
    maps = [fit_map(x, own, list(range(LAYERS)), "ridge", 1e-3) for x in theirs]
    made = KVFuser(KVConfig(teachers=list(WIDTHS), transfer="inject", **config), maps, list(MODELS.values()))
    if trained:
        torch.manual_seed(2)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def corrected(made, own, theirs, **context):
    return made(own, SAMPLE, theirs, ROWS, **context)


@pytest.mark.parametrize("strategy", ["fixed", "similarity", "learnable"])
@pytest.mark.parametrize("head", HEADS)
def test_a_fuser_that_is_not_trained_adds_exactly_nothing_and_one_that_is_something(head, strategy):
    settings = {"fuser": {"head": head, "hidden": 5}, "fusion": {"strategy": strategy}}
    own, theirs = kvs()
    assert torch.equal(corrected(fuser(False, **settings), own, theirs)[0], torch.zeros_like(own))
    assert (corrected(fuser(**settings), own, theirs)[0].abs() > 1e-3).float().mean() > 0.9


def test_an_mlp_head_by_hand():
    """Two layers of numpy on standardised numbers, mixed by the given weights."""
    made = fuser(fuser={"head": "mlp", "hidden": 7}, fusion={"weights": [0.25, 0.75]})
    own, theirs = kvs()
    found = corrected(made, own, theirs)[0].detach().numpy()
    reference, teachers = kvs(9)
    own_mean, spread = reference.mean(0), reference.var(0, unbiased=False).mean(-1, keepdim=True).sqrt()
    expected = 0
    for weight, x, y, head in zip((0.25, 0.75), theirs, teachers, made.heads, strict=True):
        unit = (x - y.mean(0)) / y.std(0, unbiased=False)
        read = torch.cat([(own - own_mean) / spread, unit], -1).reshape(TOKENS, -1)
        hidden = read @ head.hidden.weight.T + head.hidden.bias
        said = (hidden / (1 + (-hidden).exp())) @ head.output.weight.T + head.output.bias
        expected = expected + weight * said.reshape(TOKENS, LAYERS, 2, WIDTH) * spread
    torch.testing.assert_close(torch.from_numpy(found), expected.detach(), rtol=1e-4, atol=1e-4)


def test_a_gated_layer_reads_only_itself_and_shuts_with_its_gate():
    made = fuser(fuser={"head": "gated", "hidden": 5})
    own, theirs = kvs()
    before = corrected(made, own, theirs)[0]
    theirs[0][:, 1] += 1.0
    moved = (corrected(made, own, theirs)[0] - before).abs().amax((0, 3))
    assert (moved[1] > 1e-3).all()
    assert (moved[[0, 2]] == 0).all()
    with torch.no_grad():
        for head in made.heads:
            head.gate[2, 1] = -1e9
    shut = corrected(made, own, theirs)[0]
    assert (shut[:, 2, 1] == 0).all()
    assert (shut[:, 2, 0] != 0).any()


def test_the_routers_parameters_get_the_gradient_of_what_reads_the_corrections():
    made = fuser(fusion={"strategy": "learnable"})
    own, theirs = kvs()
    corrections, weights = corrected(made, own, theirs)
    assert weights.shape == (ROWS, 2)
    corrections.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in made.router.parameters())


@pytest.mark.parametrize("strategy", ["fixed", "similarity"])
def test_what_stands_in_the_teachers_place(strategy):
    """zeros and self do not depend on the teachers, shuffled ones do; noise is drawn anew."""
    (own, theirs), (_, others) = kvs(), kvs(1)
    for control, same in (("zeros", True), ("self", True), ("shuffle_items", False), ("gaussian", False)):
        made = fuser(control=control, fusion={"strategy": strategy})
        found = [corrected(made, own, each)[0] for each in (theirs, others)]
        assert torch.equal(*found) == same, control
    itself = fuser(control="self", fusion={"strategy": strategy})
    assert {head.hidden.in_features for head in itself.heads} == {LAYERS * 4 * WIDTH}
    moved = own.clone()
    moved[0] += 1
    zeros = fuser(control="zeros", fuser={"head": "linear"})
    for head in zeros.heads:  # without the student's own part a constant is left
        with torch.no_grad():
            head.output.weight.unflatten(1, (LAYERS, 2, -1))[..., :WIDTH] = 0
    one, other = (corrected(zeros, each, theirs)[0] for each in (own, moved))
    torch.testing.assert_close(one, other)


def test_files_give_back_the_same_fuser_and_refuse_other_teachers(tmp_path):
    made = fuser(fusion={"strategy": "learnable", "per_layer": True}, fuser={"head": "gated"})
    made.save(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    own, theirs = kvs()
    again = KVFuser.load(tmp_path, MODELS | {"more": MODELS["a"]})
    for one, other in zip(corrected(made, own, theirs), corrected(again, own, theirs), strict=True):
        assert torch.equal(one, other)
    for given in ({}, {"a": MODELS["a"]}, MODELS | {"b": MODELS["a"]}):
        with pytest.raises(ValueError, match=r"reads the KV of a, b, but (a, )?b .*is not given"):
            KVFuser.load(tmp_path, given)
