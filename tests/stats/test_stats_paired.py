"""Paired p values agree with scipy and enumeration, and know of seeds as well as of items."""

from itertools import product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.items import MACRO
from mtkv.stats.paired_tests import difference, exact_mcnemar, holm, smallest_detectable

ONE = ["pocket_bbh"]


def compared(answers, column=ONE[0], resamples=4000, **options):
    return difference(answers, Resamples(answers, resamples, 0), "a", "b", column, 0.95, **options)


def test_one_seed_is_the_exact_test_of_the_discordant_items(made):
    for seed in range(5):
        world = made.draw_world(np.random.default_rng(seed), {"a": 0.6, "b": 0.5}, {"a": 1, "b": 1}, ONE, 40)
        ours, theirs = (world[arm][ONE[0]][0] for arm in "ab")
        wins, losses = int((ours > theirs).sum()), int((ours < theirs).sum())
        expected = stats.binomtest(wins, wins + losses).pvalue
        assert compared(made.answers_of(world)).p == pytest.approx(expected, abs=1e-10)


def test_identical_answers_are_no_evidence(made):
    row = np.random.default_rng(0).integers(0, 2, (1, 30)).astype(float)
    assert exact_mcnemar(row[0], row[0]) == 1.0
    found = compared(made.answers_of({"a": {ONE[0]: np.tile(row, (3, 1))}, "b": {ONE[0]: np.tile(row, (3, 1))}}))
    assert (found.estimate.value, found.p) == (0, 1)
    edge = 1.96**2 / (30 + 1.96**2)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((-edge, edge), abs=0.001)
    assert 0.05 < found.mdd < 0.3


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_sign_flips_agree_with_all_of_them(made, threshold):
    """Partial credit, so that McNemar does not apply: 2¹⁰ flips are enumerated."""
    rng = np.random.default_rng(1)
    world = {"a": {ONE[0]: rng.uniform(0.2, 1, (1, 10))}, "b": {ONE[0]: rng.uniform(0, 0.9, (1, 10))}}
    shifted = (world["a"][ONE[0]] - world["b"][ONE[0]])[0] - threshold
    means = [np.mean(np.array(signs) * shifted) for signs in product((-1, 1), repeat=10)]
    exact = np.mean(np.abs(means) >= abs(shifted.mean()) - 1e-12)
    assert compared(made.answers_of(world), resamples=40000, threshold=threshold).p == pytest.approx(exact, abs=0.008)


def test_sign_flips_agree_with_scipy_on_the_macro_average(made):
    world = made.draw_world(
        np.random.default_rng(2), {"a": 0.6, "b": 0.5}, {"a": 1, "b": 1}, ["pocket_bbh", "pocket_gpqa"], 50
    )
    answers = made.answers_of(world)
    sides = [np.concatenate([answers.matrix(arm, dataset)[0] for dataset in answers.datasets]) for arm in "ab"]
    theirs = stats.permutation_test(
        sides,
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=20000,
        vectorized=True,
        rng=3,
    )
    assert compared(answers, MACRO, 20000).p == pytest.approx(theirs.pvalue, abs=0.015)


def test_swapping_the_arms_only_turns_the_sign(made):
    answers = made.answers_of(
        made.draw_world(np.random.default_rng(3), {"a": 0.6, "b": 0.5}, {"a": 3, "b": 3}, ONE, 60, 0.1)
    )
    resamples = Resamples(answers, 20000, 0)
    one, two = (difference(answers, resamples, *arms, ONE[0], 0.95) for arms in ("ab", "ba"))
    assert one.estimate.value == pytest.approx(-two.estimate.value, abs=1e-12)
    assert (one.estimate.low, one.estimate.high) == pytest.approx((-two.estimate.high, -two.estimate.low), abs=0.01)
    assert one.p == pytest.approx(two.p, abs=0.02)


def test_many_items_do_not_make_up_for_seeds_that_disagree(made):
    """Seeds at +2, +10 and +30 points on 1,000 items: sure of these three models, not of the method."""
    rng = np.random.default_rng(4)
    base = (rng.uniform(size=(3, 1000)) < 0.4).astype(float)
    lifted = np.maximum(base, rng.uniform(size=(3, 1000)) < np.array([[0.03], [0.17], [0.5]]))
    answers = made.answers_of({"a": {ONE[0]: lifted}, "b": {ONE[0]: base}})
    per_item = (lifted - base).mean(axis=0)
    assert stats.ttest_1samp(per_item, 0).pvalue < 1e-10
    found = compared(answers, resamples=1000)
    assert found.p > 0.05
    assert found.estimate.low < 0 < found.estimate.value


def test_an_arm_with_one_seed_is_repeated(made):
    rng = np.random.default_rng(5)
    ours, theirs = rng.integers(0, 2, (3, 50)).astype(float), rng.integers(0, 2, (1, 50)).astype(float)
    once, thrice = (made.answers_of({"a": {ONE[0]: ours}, "b": {ONE[0]: np.tile(theirs, (n, 1))}}) for n in (1, 3))
    one, three = compared(once), compared(thrice)
    assert one.p == three.p
    assert (one.estimate.low, one.estimate.high) == pytest.approx((three.estimate.low, three.estimate.high), abs=1e-12)


def test_holm_agrees_with_statsmodels_and_skips_what_was_not_tested():
    rng = np.random.default_rng(8)
    for size in (1, 2, 7, 40):
        p = np.round(rng.uniform(size=size) ** 3, 2)
        gaps = np.insert(p, [0, size // 2], np.nan)
        ours = holm(gaps)
        assert np.isnan(ours).sum() == 2
        assert ours[~np.isnan(ours)] == pytest.approx(multipletests(p, method="holm")[1], abs=1e-10)
    assert np.isnan(holm(np.array([np.nan]))).all()
    assert holm(np.array([])).size == 0


@pytest.mark.parametrize(("n", "points"), [(180, 9.3), (1319, 3.4)])
def test_smallest_detectable_difference_of_the_design(made, n, points):
    """20 % disagreement: 9.3 points at 180 items and 3.4 at 1,319 (statistics_and_report.md)."""
    half = n // 10
    ours, theirs = np.zeros((1, n)), np.zeros((1, n))
    ours[0, :half], theirs[0, half : 2 * half] = 1, 1
    found = compared(made.answers_of({"a": {ONE[0]: ours}, "b": {ONE[0]: theirs}}), resamples=50)
    assert 100 * found.mdd == pytest.approx(points, abs=0.15)


def test_smallest_detectable_difference_is_found_four_times_in_five():
    """Normal differences of 40 items with a true mean of the printed size, against the t test of scipy."""
    from types import SimpleNamespace

    se = 1 / np.sqrt(40)
    shift = smallest_detectable(SimpleNamespace(se=se, df=39), 0.95)
    samples = np.random.default_rng(6).normal(shift, 1, (20000, 40))
    assert (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.015)


def test_missing_side_is_named(made):
    answers = made.answers_of(
        made.draw_world(np.random.default_rng(7), {"a": 0.6, "b": 0.5}, {"a": 1, "b": 1}, ONE, 10)
    )
    answers.reasons["b", 42, ONE[0]] = "failed: out of memory"
    assert compared(answers, MACRO) == "b has no result (pocket_bbh, seed 42: failed: out of memory)"
