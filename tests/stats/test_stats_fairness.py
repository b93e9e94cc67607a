"""Arms with different compute are not compared; the message has the runs and the numbers."""

import pytest

from mtkv.stats.compute_parity import QUANTITIES, UnfairComparison, check_fairness

RESULT = {"steps": 300, "tokens": 1_000_000, "rows_seen": 19200, "batch_size": 64, "ce_weight": 1.0}


def cards(**changes):
    runs = [("sft", 42, {}), ("kv", 42, changes), ("kv", 43, {}), ("sft", 43, {})]
    return [{"wildcards": {"arm": arm, "seed": str(seed)}, "result": RESULT | own} for arm, seed, own in runs]


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_half_a_percent_passes_and_two_percent_does_not(quantity):
    spans = check_fairness(cards(**{quantity: RESULT[quantity] * 0.995}), 0.01)
    assert spans[quantity] == [RESULT[quantity] * 0.995, RESULT[quantity]]
    for factor in (0.98, 1.02):
        value = RESULT[quantity] * factor
        with pytest.raises(UnfairComparison, match=rf"{quantity}: .*kv/seed42.*2\.0%.*allowed: 1\.0%") as caught:
            check_fairness(cards(**{quantity: value}), 0.01)
        assert f"{value:g}" in str(caught.value)
        assert f"{RESULT[quantity]:g}" in str(caught.value)


def test_seeds_may_draw_rows_of_other_lengths_but_arms_of_one_seed_may_not():
    made = cards()
    for card in made:
        card["result"] |= {"tokens": 43_697 if card["wildcards"]["seed"] == "43" else 42_974}
    assert check_fairness(made, 0.01)["tokens"] == [42_974, 43_697]
    made[2]["result"]["tokens"] = 42_974
    with pytest.raises(UnfairComparison, match=r"tokens: kv/seed43 has 42974, sft/seed43 has 43697, 1\.7% apart"):
        check_fairness(made, 0.01)


def test_every_problem_is_reported_at_once():
    with pytest.raises(UnfairComparison) as caught:
        check_fairness(cards(steps=200, tokens=None), 0.01)
    assert "steps: kv/seed42 has 200" in str(caught.value)
    assert "tokens: not in the card of kv/seed42" in str(caught.value)


def test_arms_without_text_loss_agree_with_each_other():
    same = [card | {"result": RESULT | {"ce_weight": 0.0}} for card in cards()]
    assert check_fairness(same, 0.01)["ce_weight"] == [0.0, 0.0]
    with pytest.raises(UnfairComparison, match="ce_weight"):
        check_fairness(cards(ce_weight=0.0), 0.01)
    assert check_fairness([], 0.01) == {}


def test_arms_with_latents_are_held_to_the_tokens_of_arms_with_as_many():
    """A chain as text has more tokens than the latents in its place; two arms of as many latents have the same."""
    runs = [("cot", None, 1000), ("latent", 8, 700), ("kava", 8, 700), ("direct", 0, 650)]
    made = [
        {
            "wildcards": {"arm": arm, "seed": "1"},
            "result": RESULT | {"tokens": tokens} | ({"slots": slots} if slots is not None else {}),
        }
        for arm, slots, tokens in runs
    ]
    assert check_fairness(made, 0.01)["tokens"] == [650, 1000]
    made[2]["result"]["tokens"] = 800
    with pytest.raises(UnfairComparison, match="tokens: latent/seed1 has 700, kava/seed1 has 800"):
        check_fairness(made, 0.01)
    made[2]["result"] |= {"tokens": 700, "steps": 100}
    with pytest.raises(UnfairComparison, match="steps: kava/seed1 has 100"):
        check_fairness(made, 0.01)
