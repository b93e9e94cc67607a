"""Selection against a loop over rows and heads in numpy, attention against the model's own, and properties of any selection."""

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import VOCABULARY
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter1d
from scipy.special import softmax
from scipy.stats import kstest

from mtkv.kv.importance import answer_importance, window_mask
from mtkv.kv.row_rng import row_uniforms
from mtkv.kv.select import METHODS, budget_bites, select, select_tokens, token_scores

SCORED = [method for method in METHODS if method != "random"]
WINDOW = 3


def data(seed, batch=4, heads=2, time=14, width=6):
    """Keys with near copies, importance, and masks with holes and padding on either side."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(batch, heads, time, width, generator=generator, dtype=torch.float64).float() + 0.4
    keys[:, :, 5] = keys[:, :, 2] * 1.5
    keys[:, :, 9] = keys[:, :, 2] + 0.05
    importance = torch.rand(batch, heads, time, generator=generator)
    mask = torch.rand(batch, time, generator=generator) < 0.8
    for row in range(batch):
        cut = int(torch.randint(0, time // 2, (1,), generator=generator))
        mask[row, :cut] &= row % 2 == 0
        mask[row, time - cut :] &= row % 2 == 1
    return keys, importance, mask


def run(method, keys, budget, mask, importance, **options):
    seeds = torch.arange(len(keys)) + 7
    return select(method, keys, budget, mask, importance=importance, window=WINDOW, seeds=seeds, **options)


def picks(selection):
    """{(row, head): list of positions}"""
    return {
        (row, head): selection.index[row, head][selection.mask[row, head]].tolist()
        for row in range(selection.index.shape[0])
        for head in range(selection.index.shape[1])
    }


def kept_count(budget, n):
    return min(budget, n) if isinstance(budget, int) else math.ceil(Fraction(str(budget)) * n)


def cosines(keys):
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    return unit @ unit.T


def redundancy(keys):
    """KaVa's listing: the diagonal is zero and counts."""
    return np.array([np.sum(np.delete(row, i)) / len(row) for i, row in enumerate(cosines(keys))])


def rkv_decode_scores(keys, importance, positions, time):
    """R-KV token by token, as the paper states it; the window gets infinite scores, later higher."""
    n, past = len(keys), max(0, len(keys) - WINDOW)
    line = np.zeros(time)
    line[positions[:past]] = importance[:past] / importance[:past].sum() if past else 0
    pooled = maximum_filter1d(line, 7, mode="constant")[positions]
    similar = cosines(keys)
    for i in range(n):
        similar[i, i] = 0
    for i in range(n):
        alike = [j for j in range(n) if similar[i, j] > 0.5]
        if alike:
            similar[i, alike[-1]] = 0
    score = 0.07 * pooled - 0.93 * softmax(similar.mean(0))
    score[past:] = 10 + np.arange(n - past)
    return score


def reference(method, keys, importance, positions, k, time, rate=0.1):
    """Kept places among the n selectable tokens of one row and head."""
    n = len(positions)
    if method == "full":
        return list(range(n))
    if method == "keep_first":
        return list(range(k))
    if method in ("keep_last", "right_crop"):
        return list(range(n - k, n))
    if method == "uniform":
        return [math.floor(Fraction(2 * i + 1, 2) * Fraction(n, k)) for i in range(k)]
    scores = {
        "attention": lambda: importance,
        "cosine": lambda: -redundancy(keys),
        "rkv": lambda: rate * importance / importance.sum() + (1 - rate) * softmax(-redundancy(keys)),
        "rkv_decode": lambda: rkv_decode_scores(keys, importance, positions, time),
    }[method]()
    return sorted(sorted(range(n), key=lambda i: (-round(scores[i], 12), i))[:k])


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("budget", [1, 4, 5, 100, 0.07, 0.5, 1.0])
@pytest.mark.parametrize("method", SCORED)
def test_every_method_equals_a_loop_over_rows_and_heads(method, budget, sinks):
    for seed in range(3):
        keys, importance, mask = data(seed)
        found = picks(run(method, keys, budget, mask, importance, sinks=sinks))
        for (row, head), got in found.items():
            allowed = np.flatnonzero(mask[row].numpy())
            first, positions = allowed[:sinks], allowed[sinks:]
            k = kept_count(budget, len(positions))
            arguments = (x[row, head].double().numpy()[positions] for x in (keys, importance))
            want = reference(method, *arguments, positions, k, keys.shape[2])
            assert got == [*first.tolist(), *positions[want].tolist()], (method, row, head)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(METHODS),
    st.one_of(st.integers(1, 20), st.floats(0.01, 1.0)),
    st.integers(0, 3),
    st.integers(0, 1000),
)
def test_selections_are_ascending_subsets_of_the_mask_of_the_right_size_for_any_batch_order(
    method, budget, sinks, seed
):
    keys, importance, mask = data(seed, batch=5)
    mask[4] = False
    selection = run(method, keys, budget, mask, importance, sinks=sinks)
    assert selection.index.shape == selection.mask.shape
    assert selection.index.dtype == torch.long
    assert (selection.mask.long().diff(dim=-1) <= 0).all()  # real entries come first
    assert (selection.index[~selection.mask] == 0).all()
    for (row, _), got in picks(selection).items():
        allowed = mask[row].nonzero()[:, 0].tolist()
        n = max(0, len(allowed) - sinks)
        k = n if method == "full" else min(n, budget) if isinstance(budget, int) else math.ceil(budget * n - 1e-9)
        assert got == sorted(set(got))
        assert set(allowed[:sinks]) <= set(got) <= set(allowed)
        assert len(got) == len(allowed[:sinks]) + k

    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    shuffled = select(
        method,
        keys[order],
        budget,
        mask[order],
        importance=importance[order],
        sinks=sinks,
        window=WINDOW,
        seeds=order + 7,
    )
    torch.testing.assert_close(shuffled.index, selection.index[order])
    torch.testing.assert_close(shuffled.mask, selection.mask[order])


@pytest.mark.parametrize("method", METHODS)
def test_what_padding_holds_and_how_long_it_is_changes_nothing(method):
    keys, importance, mask = data(1)
    mask[:, 10:] = False
    want = picks(run(method, keys[:, :, :10], 3, mask[:, :10], importance[..., :10]))
    keys, importance = keys.clone(), importance.clone()
    keys[(~mask)[:, None].expand(-1, 2, -1)] = torch.nan
    importance[(~mask)[:, None].expand(-1, 2, -1)] = 1e9
    assert picks(run(method, keys, 3, mask, importance)) == want


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_as_long_as_the_row_is_full(method):
    keys, importance, mask = data(2)
    everything = picks(select("full", keys, 1, mask))
    for budget in (14, 1.0):
        assert picks(run(method, keys, budget, mask, importance)) == everything


@pytest.mark.parametrize("method", ["cosine", "rkv"])
def test_of_keys_in_the_same_direction_the_earlier_is_kept(method):
    generator = torch.Generator().manual_seed(0)
    half = torch.randint(-9, 10, (3, 2, 60, 16), generator=generator).float()
    keys = torch.cat([half, half * torch.randint(2, 8, (60, 1), generator=generator)], 2)  # exact in floating point
    mask, importance = torch.ones(3, 120, dtype=torch.bool), torch.ones(3, 2, 120)
    for budget in (1, 17, 41):
        for got in picks(select(method, keys, budget, mask, importance=importance)).values():
            assert {t - 60 for t in got if t >= 60} <= set(got)


def test_a_share_that_is_not_exact_in_floating_point_is_not_rounded_up_twice():
    mask = torch.ones(1, 100, dtype=torch.bool)
    assert 0.07 * 100 > 7
    assert select("keep_first", torch.zeros(1, 1, 100, 1), 0.07, mask).index.shape[-1] == 7
    assert select("keep_first", torch.zeros(1, 1, 100, 1), 0.071, mask).index.shape[-1] == 8


def test_lambda_weighs_importance_against_redundancy_on_planted_tokens():
    keys = torch.eye(8)[[0, 0, 0, 1, 2, 3]].view(1, 1, 6, 8)  # 0, 1, 2 are copies; 3, 4, 5 are alone
    importance = torch.tensor([0.5, 0.0, 0.0, 0.0, 0.2, 0.3]).view(1, 1, 6)
    mask = torch.ones(1, 6, dtype=torch.bool)
    found = {
        rate: select("rkv", keys, 2, mask, importance=importance, rate=rate).index[0, 0].tolist()
        for rate in (0.0, 0.1, 0.9)
    }
    # alone: R = 1/(3 + 3·e^-0.4); a copy: e^-0.4 times that
    assert found == {0.0: [3, 4], 0.1: [4, 5], 0.9: [0, 5]}
    scaled = select("rkv", keys, 2, mask, importance=importance * 50).index[0, 0].tolist()
    assert scaled == found[0.1]  # only shares of importance count


def test_rkv_decode_keeps_the_newest_of_several_copies():
    keys = torch.eye(12)[[0, 1, 1, 1, 2, 3, 4, 5]].view(1, 1, 8, 12)
    mask, importance = torch.ones(1, 8, dtype=torch.bool), torch.ones(1, 1, 8)
    kept = select("rkv_decode", keys, 6, mask, importance=importance, window=2).index[0, 0].tolist()
    assert kept == [0, 3, 4, 5, 6, 7]
    assert select("rkv_decode", keys, 1, mask, importance=importance, window=2).index.tolist() == [[[7]]]


def test_random_is_uniform_reproducible_and_needs_a_source():
    batch, time = 400, 10
    keys, mask = torch.zeros(batch, 1, time, 2), torch.ones(batch, time, dtype=torch.bool)
    with pytest.raises(ValueError, match="seeds"):
        select("random", keys, 3, mask)
    found = select("random", keys, 3, mask, seeds=torch.arange(batch))
    counts = torch.bincount(found.index.flatten(), minlength=time)
    assert ((counts - 120).abs() < 5 * (batch * 0.3 * 0.7) ** 0.5).all()
    first, again = (select("random", keys, 3, mask, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    torch.testing.assert_close(first.index, again.index)
    other = select("random", keys, 3, mask, generator=torch.Generator().manual_seed(4))
    assert not torch.equal(first.index, other.index)


def test_row_draws_equal_splitmix64_in_python_integers_and_are_uniform():
    def mixed(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    step, seeds = 0x9E3779B97F4A7C15, [0, 1, -5, 2**62]
    want = [
        [((mixed((mixed((seed + step) % 2**64) + n * step) % 2**64) >> 11) + 0.5) / 2**53 for n in range(1, 7)]
        for seed in seeds
    ]
    got = row_uniforms(torch.tensor(seeds), (2, 3))
    np.testing.assert_array_equal(got.reshape(4, 6).numpy(), want)
    assert kstest(row_uniforms(torch.arange(3000), (2,)).flatten().numpy(), "uniform").pvalue > 0.01


def test_token_scores_average_heads_and_layers_and_pick_one_set_per_row():
    keys, importance, mask = data(3, heads=3)
    other, other_importance, _ = data(4, heads=3)
    scores = token_scores("attention", [keys, other], 4, mask, importance=[importance, other_importance], sinks=1)
    for row in range(len(keys)):
        allowed = mask[row].nonzero()[1:, 0]
        shares = [
            x[row, head, allowed] / x[row, head, allowed].sum()
            for x in (importance, other_importance)
            for head in range(3)
        ]
        torch.testing.assert_close(scores[row, allowed], torch.stack(shares).mean(0).double())
    picked = select_tokens("attention", [keys, other], 4, mask, importance=[importance, other_importance], sinks=1)
    for row in range(len(keys)):
        allowed = mask[row].nonzero()[:, 0]
        best = sorted(allowed[1:].tolist(), key=lambda t: -scores[row, t])[:4]
        assert picked.index[row][picked.mask[row]].tolist() == sorted([allowed[0].item(), *best])


@pytest.mark.parametrize("method", METHODS)
def test_with_one_layer_and_head_token_selection_is_selection(method):
    keys, importance, mask = data(5, heads=1)
    options = {"importance": importance, "window": WINDOW, "seeds": torch.arange(4), "sinks": 1}
    want, got = select(method, keys, 3, mask, **options), select_tokens(method, keys, 3, mask, **options)
    torch.testing.assert_close(got.index, want.index[:, 0])
    torch.testing.assert_close(got.mask, want.mask[:, 0])


def test_where_the_budget_bites():
    mask = torch.arange(8) < torch.tensor([[8], [4], [3], [0]])
    assert [budget_bites(mask, budget) for budget in (1, 3, 4, 8, 0.5, 1.0)] == [0.75, 0.5, 0.25, 0.0, 0.75, 0.0]
    assert budget_bites(mask, 3, sinks=1) == 0.25
    # 3 tokens: ⌈0.7·3⌉ = 3 keeps them all
    assert budget_bites(mask, 0.7) == 0.5


@pytest.mark.parametrize("budget", [0, -1, 0.0, 1.5, True, "half"])
def test_a_budget_that_is_neither_count_nor_share_is_refused(budget):
    keys, _, mask = data(0)
    with pytest.raises(ValueError, match="budget"):
        select("keep_first", keys, budget, mask)


def test_unknown_methods_and_missing_importance_are_refused():
    keys, _, mask = data(0)
    with pytest.raises(ValueError, match=r"'best' is not one of.*rkv_decode"):
        select("best", keys, 3, mask)
    for method in ("attention", "rkv", "rkv_decode"):
        with pytest.raises(ValueError, match="importance"):
            select(method, keys, 3, mask)


def attended(model, input_ids, mask, monkeypatch):
    """Per layer: the model's own attention weights, and the queries and keys they were computed from (after RoPE)."""
    found = []
    modeling = sys.modules[type(model).__module__]
    eager = modeling.eager_attention_forward

    def spy(module, query, key, *args, **kwargs):
        found.append((query, key))
        return eager(module, query, key, *args, **kwargs)

    monkeypatch.setattr(modeling, "eager_attention_forward", spy)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(input_ids, attention_mask=mask.long(), output_attentions=True, use_cache=False)
    assert len(found) == len(output.attentions) == 3
    return output.attentions, found


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama_mqa_wide"])
def test_importance_is_the_models_own_attention_from_the_answer(build_model, monkeypatch, name):
    model, time = build_model(name), 12
    input_ids = torch.randint(3, VOCABULARY, (4, time), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(4, time, dtype=torch.bool)
    mask[1, 9:] = mask[2, :3] = False
    answer = torch.zeros_like(mask)
    answer[0, 8:] = answer[1, 6:9] = answer[2, 11:] = True  # row 3 has no answer
    for weights, (queries, keys) in zip(*attended(model, input_ids, mask, monkeypatch), strict=True):
        got = answer_importance(queries, keys, answer, mask)
        assert got.shape == (4, keys.shape[1], time)
        group = weights.shape[1] // keys.shape[1]
        for row in range(3):
            for head in range(keys.shape[1]):
                own = weights[row, head * group : (head + 1) * group][:, answer[row]]
                torch.testing.assert_close(got[row, head], own.max(0).values.mean(0), atol=1e-6, rtol=1e-5)
        assert got[3].abs().sum() == 0
        assert got[1, :, 9:].abs().sum() == got[2, :, :3].abs().sum() == 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama_mqa_wide"])
def test_importance_of_a_window_is_r_kv_s(build_model, monkeypatch, name):
    """A loop over its window's queries: the group's largest logit of each token before, softmax over those, mean over the queries."""
    model, time, window = build_model(name), 12, 4
    input_ids = torch.randint(3, VOCABULARY, (3, time), generator=torch.Generator().manual_seed(2))
    chain = torch.ones(3, time, dtype=torch.bool)
    chain[0, :2] = chain[0, 11:] = chain[1, :9] = (
        False  # a question and an answer around the chain; one no longer than the window
    )
    asking = window_mask(chain, window)
    _, found = attended(model, input_ids, torch.ones(3, time), monkeypatch)
    for queries, keys in found:
        got = answer_importance(queries, keys, asking, torch.ones(3, time, dtype=torch.bool), past=chain & ~asking)
        group = queries.shape[1] // keys.shape[1]
        for row in range(3):
            cache = chain[row].nonzero()[:, 0].tolist()
            past, last = cache[:-window], cache[-window:]
            for head in range(keys.shape[1]):
                want = np.zeros(time)
                for query in last if past else []:
                    heads = [queries[row, head * group + member, query] for member in range(group)]
                    logits = [max(float(q @ keys[row, head, t]) for q in heads) for t in past]
                    want[past] += softmax(np.array(logits) / math.sqrt(keys.shape[-1])) / window
                np.testing.assert_allclose(got[row, head].numpy(), want, atol=1e-6)


def test_importance_refuses_heads_that_do_not_group_and_the_window_is_the_last_real_tokens():
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 1, 0, 0, 0]], dtype=torch.bool)
    with pytest.raises(ValueError, match="3 query heads"):
        answer_importance(torch.zeros(3, 3, 5, 2), torch.zeros(3, 2, 5, 2), mask, mask)
    assert window_mask(mask, 2).long().tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1], [0, 1, 0, 0, 0]]
