"""Arms with different compute are not compared; the message has the runs and the numbers."""

import pytest

from mtkv.stats.fairness import QUANTITIES, UnfairComparison, check_fairness

RESULT = {"steps": 300, "tokens": 1_000_000, "rows_seen": 19200, "batch_size": 64, "ce_weight": 1.0}


def cards(**changes):
    runs = [("sft", 42, {}), ("kv", 42, changes), ("kv", 43, {})]
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
