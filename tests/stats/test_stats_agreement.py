"""Closed forms agree with statsmodels and scipy: clustered errors, smallest differences, TOST, the classic fields."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.cells import cell, design_effect, effective_items
from mtkv.stats.intervals import estimate, item_variance, residual_spread, spread, wilson
from mtkv.stats.items import Answers
from mtkv.stats.paired_tests import difference
from mtkv.stats.power import classic, equivalence_p, noncentrality

ONE = ["pocket_bbh"]


@pytest.fixture
def clustered(made):
    """Two arms with 3 seeds on 60 items in 12 clusters of unequal size."""
    rng = np.random.default_rng(1)
    codes = np.sort(np.concatenate([np.arange(12), rng.integers(0, 12, 48)]))
    world = made.draw_world(rng, {"a": 0.6, "b": 0.5}, {"a": 3, "b": 3}, ONE, 60, 0.2)
    answers = made.answers_of(world)
    return replace(answers, clusters={ONE[0]: rng.permutation(codes)}, _matrices={})


def one_seed(answers):
    correct = {key: value for key, value in answers.correct.items() if key[1] == 42}
    return replace(answers, seeds={"a": [42], "b": [42]}, correct=correct, _matrices={})


def test_clustered_error_is_that_of_statsmodels(clustered):
    answers = one_seed(clustered)
    shares = (answers.matrix("a", ONE[0]) - answers.matrix("b", ONE[0]))[0]
    fit = sm.OLS(shares, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": answers.clusters[ONE[0]]})
    found = estimate(answers, Resamples(answers, 4000, 0), "a", ONE[0], 0.95, "b")
    assert found.se == pytest.approx(fit.bse[0], abs=1e-10)
    assert found.df == pytest.approx(11)
    low, high = stats.t.interval(0.95, 11, shares.mean(), fit.bse[0])
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-3)


def test_singletons_are_no_clusters(clustered):
    values = clustered.matrix("a", ONE[0])
    alone = np.arange(60)
    assert spread(values[0], alone) == pytest.approx(values[0].var(ddof=1), abs=1e-12)
    assert residual_spread(values, alone) == pytest.approx(residual_spread(values), abs=1e-12)
    assert item_variance(values.mean(axis=0), [values], alone) == pytest.approx(
        item_variance(values.mean(axis=0), [values]), abs=1e-12
    )


def test_few_clusters_are_strata_and_the_design_effect_is_shown_all_the_same(clustered):
    strata = replace(clustered, min_clusters=13, _matrices={})
    assert strata.groups(ONE[0]) is None
    assert clustered.groups(ONE[0]) is not None
    shares = clustered.matrix("a", ONE[0]).mean(axis=0)
    model, groups = sm.OLS(shares, np.ones(60)), {"groups": clustered.clusters[ONE[0]]}
    fits = [model.fit(), model.fit(cov_type="cluster", cov_kwds=groups)]
    expected = (fits[1].bse[0] / fits[0].bse[0]) ** 2
    assert design_effect(strata, "a", ONE[0]) == pytest.approx(expected, abs=1e-10)
    assert design_effect(clustered, "a", ONE[0]) == pytest.approx(expected, abs=1e-10)


def test_clusters_flip_together(clustered):
    resamples = Resamples(clustered, 4000, 0)
    shares = clustered.matrix("a", ONE[0]).mean(axis=0)
    sums = np.bincount(clustered.clusters[ONE[0]], weights=shares)
    assert resamples.flips[ONE[0]]["a"].std() == pytest.approx(np.sqrt((sums**2).sum()) / 60, rel=0.05)
    assert not np.isclose(np.sqrt((sums**2).sum()), np.sqrt((shares**2).sum()), rtol=0.3)


@pytest.mark.parametrize("questions", [5, 20])
@pytest.mark.parametrize("kind", ["alone", "in few clusters"])
def test_a_question_asked_twenty_times_counts_once(questions, kind):
    """As many questions as `questions`, each twenty times: the interval is Student's over the questions."""
    rng = np.random.default_rng(1)
    gain = rng.choice([-1.0, 0.0, 1.0], questions, p=[0.2, 0.3, 0.5])
    codes = rng.permutation(np.repeat(np.arange(questions), 20))
    correct = {("a", 42, ONE[0]): (gain[codes] > 0) * 1.0, ("b", 42, ONE[0]): (gain[codes] < 0) * 1.0}
    subjects = codes if kind == "alone" else codes % 3
    seeds = {"a": [42], "b": [42]}
    answers = Answers(pd.DataFrame(), seeds, ONE, correct, {}, {ONE[0]: subjects}, questions={ONE[0]: codes})
    found = estimate(answers, Resamples(answers, 4000, 0), "a", ONE[0], 0.95, "b")
    expected = stats.t.interval(0.95, questions - 1, gain.mean(), stats.sem(gain))
    assert (found.low, found.high) == pytest.approx(expected, abs=0.005)


def test_one_question_is_one_item_however_often_it_is_asked():
    codes, seeds = np.zeros(50, dtype=int), {"a": [42, 43]}
    runs = {("a", seed, ONE[0]): np.ones(50) for seed in seeds["a"]}
    answers = Answers(pd.DataFrame(), seeds, ONE, runs, {}, {}, questions={ONE[0]: codes})
    found = cell(answers, Resamples(answers, 400, 0), "a", ONE[0], 0.95)
    assert (found.low, found.high) == wilson(1, 1, 0.95)


def test_wilson_with_clusters_uses_the_effective_number():
    codes = np.arange(60) // 5
    row = np.repeat([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0], 5)
    row[::7] = 1 - row[::7]
    answers = Answers(pd.DataFrame(), {"a": [42]}, ONE, {("a", 42, ONE[0]): row}, {}, {ONE[0]: codes})
    found = cell(answers, Resamples(answers, 100, 0), "a", ONE[0], 0.95)
    items = effective_items(answers, found, ONE[0], 0.95)
    assert found.method == "wilson, clusters"
    fit = sm.OLS(row, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": codes})
    few = (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 11)) ** 2
    assert items == pytest.approx(row.mean() * (1 - row.mean()) / fit.bse[0] ** 2 * few)
    assert items < 30
    assert (found.low, found.high) == wilson(found.value * items, items, 0.95)


@pytest.mark.parametrize("n", [3, 6, 40, 1319])
def test_smallest_detectable_difference_is_that_of_statsmodels(n):
    expected = float(np.squeeze(TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8))) * np.sqrt(n)
    assert noncentrality(n - 1.0, 0.95) == pytest.approx(expected, rel=1e-5)
    power = TTestPower().power(noncentrality(n - 1.0, 0.95) / np.sqrt(n), n, 0.05)
    assert power == pytest.approx(0.8, abs=1e-8 if n < 1000 else 1e-6)


def test_equivalence_is_statsmodels_tost(made):
    world = made.draw_world(np.random.default_rng(4), {"a": 0.5, "b": 0.5}, {"a": 1, "b": 1}, ONE, 90)
    answers = made.answers_of(world)
    for one, other in ("ab", "ba"):
        found = estimate(answers, Resamples(answers, 100, 0), one, ONE[0], 0.95, other)
        assert found.value != 0
        for margin in (0.02, 0.1, 0.3):
            expected = ttost_paired(world[one][ONE[0]][0], world[other][ONE[0]][0], -margin, margin)[0]
            assert equivalence_p(found, margin) == pytest.approx(expected, abs=1e-10)


def test_classic_fields_are_those_of_scipy(made):
    world = made.draw_world(np.random.default_rng(5), {"a": 0.6, "b": 0.5}, {"a": 4, "b": 4}, ONE, 50, 0.3)
    answers = made.answers_of(world)
    ours, theirs = (world[arm][ONE[0]].mean(axis=1) for arm in "ab")
    found = difference(answers, Resamples(answers, 100, 0), "a", "b", ONE[0], 0.95)
    fields = classic(answers, "a", "b", ONE[0], found.estimate)
    expected = stats.ttest_rel(ours, theirs)
    assert (fields.t_seeds, fields.p_seeds) == pytest.approx((expected.statistic, expected.pvalue), abs=1e-10)
    pooled = np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 2)
    assert fields.cohens_d == pytest.approx((ours.mean() - theirs.mean()) / pooled, abs=1e-10)
    unrelated = replace(answers, seeds={"a": [42, 43, 44, 45], "b": [1, 2, 3, 4]}, _matrices={})
    unrelated.correct.update({("b", i + 1, ONE[0]): row for i, row in enumerate(world["b"][ONE[0]])})
    found = difference(unrelated, Resamples(unrelated, 100, 0), "a", "b", ONE[0], 0.95)
    welch = stats.ttest_ind(ours, theirs, equal_var=False)
    fields = classic(unrelated, "a", "b", ONE[0], found.estimate)
    assert (fields.t_seeds, fields.p_seeds) == pytest.approx((welch.statistic, welch.pvalue), abs=1e-10)


@pytest.mark.parametrize(("items", "equal"), [(20, False), (1000, True)])
def test_identical_answers_are_equivalent_only_where_they_are_many(items, equal):
    """If one item in a hundred told the arms apart, 20 would all agree with probability 0.82, 1,000 with 0.00004."""
    correct = {(arm, 42, ONE[0]): np.array([0.0, 1.0] * (items // 2)) for arm in "ab"}
    answers = Answers(pd.DataFrame(), {"a": [42], "b": [42]}, ONE, correct, {})
    found = estimate(answers, Resamples(answers, 50, 0), "a", ONE[0], 0.95, "b")
    assert (equivalence_p(found, 0.01) < 0.05) == equal == (0.99**items < 0.05)
