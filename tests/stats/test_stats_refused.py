"""What the design refuses: overlap as a test, seeds as items, best of seeds, dropped failures, different subsets."""

import numpy as np
import pytest
from scipy import stats

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.cells import cell
from mtkv.stats.items import MACRO
from mtkv.stats.paired_tests import difference
from mtkv.stats.pairs import outcomes, pairs_table

ONE = ["pocket_bbh"]


def test_overlap_of_intervals_is_no_test(made):
    """10 of 200 items gained, none lost: the cells' intervals overlap widely, the paired difference is certain."""
    theirs = np.repeat([[0.0, 1.0]], 100, axis=1)
    ours = theirs.copy()
    ours[0, :20:2] = 1
    answers = made.answers_of({"a": {ONE[0]: ours}, "b": {ONE[0]: theirs}})
    resamples = Resamples(answers, 1000, 0)
    a, b = (cell(answers, resamples, arm, ONE[0], 0.95) for arm in "ab")
    assert a.low < b.high
    row = pairs_table(answers, resamples, {("a", "b"): "baseline"}, 0.95).iloc[0]
    assert row["p"] == pytest.approx(stats.binomtest(10, 10).pvalue)
    assert row["outcome"] == "better"


def test_spread_of_seeds_is_not_the_error_over_items(made):
    """Three seeds that agree closely on 40 items: their spread alone would be far too small an error."""
    world = made.draw_world(np.random.default_rng(2), {"a": 0.5}, {"a": 3}, ONE, 40)
    answers = made.answers_of(world)
    found = cell(answers, Resamples(answers, 2000, 0), "a", ONE[0], 0.95)
    assert found.safe.se >= stats.sem(world["a"][ONE[0]].mean(axis=0)) * 0.999
    assert found.safe.se > found.sd_seeds / np.sqrt(3)
    assert found.sd_seeds == pytest.approx(world["a"][ONE[0]].mean(axis=1).std(ddof=1))


def test_the_mean_of_seeds_counts_never_the_best(made):
    best = np.array([[1.0] * 40, [0.0] * 40, [0.0] * 40])
    answers = made.answers_of({"a": {ONE[0]: best}, "b": {ONE[0]: np.full((3, 40), 0.5)}})
    resamples = Resamples(answers, 100, 0)
    assert cell(answers, resamples, "a", ONE[0], 0.95).value == pytest.approx(1 / 3)
    assert difference(answers, resamples, "a", "b", ONE[0], 0.95).estimate.value == pytest.approx(1 / 3 - 1 / 2)


def test_a_failed_seed_or_dataset_is_not_dropped(made):
    two = made.datasets[:2]
    answers = made.answers_of(
        made.draw_world(np.random.default_rng(3), {"a": 0.6, "b": 0.5}, {"a": 3, "b": 3}, two, 20)
    )
    answers.reasons["a", 44, two[0]] = "failed: out of memory"
    resamples = Resamples(answers, 100, 0)
    for column in (two[0], MACRO):
        assert cell(answers, resamples, "a", column, 0.95) == f"{two[0]}, seed 44: failed: out of memory"
        assert "failed: out of memory" in difference(answers, resamples, "a", "b", column, 0.95)
    assert cell(answers, resamples, "a", two[1], 0.95).n_seeds == 3
    table = pairs_table(answers, resamples, {("a", "b"): "baseline"}, 0.95).set_index("dataset")
    assert table["outcome"].to_dict()[two[0]] == table["outcome"].to_dict()[MACRO] == "missing"


def test_words_for_pairs():
    import pandas as pd

    columns = ["delta", "low", "high", "p_holm", "p_tost"]
    rows = [
        (1, 0.5, 2, 0.01, 1),
        (-1, -2, -0.5, 0.01, 1),
        (0.1, -1, 1, 0.9, 0.01),
        (1, -1, 3, 0.9, 0.4),
        (1, 0.5, 2, 0.2, 0.9),
    ]
    rows += [(np.nan,) * 5, (1, -0.1, 2, 0.01, 0.9)]
    expected = ["better", "worse", "equivalent", "undecided", "undecided", "missing", "undecided"]
    assert outcomes(pd.DataFrame(rows, columns=columns), 0.05) == expected
