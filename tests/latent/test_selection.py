"""Selection per layer and head against `select` called for one row, layer and head at a time."""

import numpy as np
import pytest
import torch

from mtkv.config.kv import SelectConfig
from mtkv.kv.select import METHODS, select
from mtkv.latent.training.selection import gather_slots, select_slots, slot_count

BATCH, CHAIN, LAYERS, HEADS, WIDTH = 4, 9, 3, 2, 8
LENGTHS, COUNTS = [9, 4, 1, 0], [5, 3, 1, 0]
CHOOSING = [method for method in METHODS if method != "full"]


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    kv = torch.randn(BATCH, CHAIN, LAYERS, 2, WIDTH, generator=generator)
    importance = torch.rand(BATCH, LAYERS, HEADS, CHAIN, generator=generator)
    mask = torch.arange(CHAIN) < torch.tensor(LENGTHS)[:, None]
    return kv, importance, mask, torch.tensor([11, 12, 13, 14])


@pytest.mark.parametrize("method", CHOOSING)
def test_each_head_of_each_layer_selects_for_itself(case, method):
    kv, importance, mask, seeds = case
    config = SelectConfig.model_validate({"method": method})
    index = select_slots(config, kv, HEADS, mask, torch.tensor(COUNTS), importance, seeds)
    assert index.shape == (BATCH, max(COUNTS), LAYERS, HEADS)
    for row in range(BATCH - 1):
        length, count = LENGTHS[row], COUNTS[row]
        for layer in range(LAYERS):
            keys = kv[row, :length, layer, 0].unflatten(-1, (HEADS, -1)).transpose(0, 1)[None]
            alone = select(
                method,
                keys,
                count,
                torch.ones(1, length, dtype=torch.bool),
                importance=importance[row, layer, :, :length][None],
                seeds=seeds[row : row + 1] + layer,
            )
            assert alone.mask.all()
            assert index[row, :count, layer].T.tolist() == alone.index[0].tolist()
            assert (index[row, :count, layer].diff(dim=0) > 0).all()


def test_heads_and_layers_differ_where_the_method_looks_at_keys(case):
    kv, importance, mask, seeds = case
    for method, differs in {"rkv": True, "cosine": True, "random": True, "uniform": False, "keep_last": False}.items():
        config = SelectConfig.model_validate({"method": method})
        index = select_slots(config, kv, HEADS, mask, torch.tensor(COUNTS), importance, seeds)[0, :5]
        assert bool((index != index[:, :1, :1]).any()) == differs, method


def test_gathering_takes_each_head_from_its_own_token(case):
    kv, importance, mask, seeds = case
    config = SelectConfig.model_validate({"method": "rkv"})
    index = select_slots(config, kv, HEADS, mask, torch.tensor(COUNTS), importance, seeds)
    sample, ordinal = torch.tensor([0, 0, 1, 2]), torch.tensor([4, 0, 2, 0])
    found = gather_slots(kv, index, sample, ordinal)
    width = WIDTH // HEADS
    for n, (row, slot) in enumerate(zip(sample, ordinal, strict=True)):
        for layer in range(LAYERS):
            for head in range(HEADS):
                part = slice(head * width, (head + 1) * width)
                token = index[row, slot, layer, head]
                assert torch.equal(found[n, layer, :, part], kv[row, token, layer, :, part])


def test_rows_without_any_chain_give_nothing():
    config = SelectConfig.model_validate({"method": "cosine"})
    kv, nothing = torch.randn(2, 0, LAYERS, 2, WIDTH), torch.zeros(2, dtype=torch.long)
    index = select_slots(config, kv, HEADS, torch.zeros(2, 0, dtype=torch.bool), nothing, None, nothing)
    none = torch.zeros(0, dtype=torch.long)
    assert gather_slots(kv, index, none, none).shape == (0, LAYERS, 2, WIDTH)


def test_the_budget_is_at_most_one_token_for_each_latent():
    count = np.vectorize(lambda budget, tokens: slot_count(SelectConfig(method="uniform", budget=budget), tokens, 6))
    assert count(1.0, [0, 1, 5, 6, 40]).tolist() == [0, 1, 5, 6, 6]
    assert count(0.5, [0, 1, 5, 6, 40]).tolist() == [0, 1, 3, 3, 6]
    assert [slot_count(SelectConfig(method="uniform", budget=3), n, 6) for n in (2, 3, 40)] == [2, 3, 3]
