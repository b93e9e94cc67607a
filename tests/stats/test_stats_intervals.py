"""Intervals agree with statsmodels, scipy and formulas written out, and cover what they say they cover."""

from dataclasses import replace
from itertools import permutations, product
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import xlogy
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from mtkv.stats.bootstrap import Resamples, quantiles
from mtkv.stats.cells import cell, tied_set
from mtkv.stats.intervals import estimate, item_variance, satterthwaite, wilson
from mtkv.stats.items import MACRO
from mtkv.stats.paired_tests import two_level_p
from mtkv.stats.ranks import duels

ONE = ["pocket_bbh"]
TWO = ["pocket_bbh", "pocket_gpqa"]


def test_wilson_is_the_root_of_the_score_equation():
    """Both ends p of Wilson's interval solve |p̂ − p| = z·sqrt(p(1 − p)/n)."""
    for right, n in [(0, 20), (1, 200), (37, 60), (200, 200)]:
        for p in wilson(right, n, 0.95):
            assert abs(right / n - p) == pytest.approx(1.959963984540054 * np.sqrt(p * (1 - p) / n), abs=1e-10)


def test_variance_components_agree_with_a_two_way_anova():
    rng = np.random.default_rng(3)
    matrix = rng.normal(0, 0.3, (4, 1)) + rng.normal(0, 1, 25) + rng.normal(0, 0.5, (4, 25))
    long = pd.DataFrame({"y": matrix.ravel(), "seed": np.repeat(np.arange(4), 25), "item": np.tile(np.arange(25), 4)})
    table = anova_lm(ols("y ~ C(seed) + C(item)", long).fit())["mean_sq"]
    expected = (table["C(item)"] - table["Residual"]) / 4
    assert item_variance(matrix.mean(axis=0), [matrix]) == pytest.approx(expected, abs=1e-10)


def test_standard_error_of_crossed_seeds_is_that_of_the_anova(made):
    """Var(mean) = (MS_seed + MS_item − MS_residual) / (seeds · items), for a difference seed by seed."""
    world = made.draw_world(np.random.default_rng(1), {"a": 0.6, "b": 0.5}, {"a": 3, "b": 3}, ONE, 80, 0.2)
    answers = made.answers_of(world)
    found = estimate(answers, Resamples(answers, 4000, 0), "a", ONE[0], 0.95, "b")
    matrix = world["a"][ONE[0]] - world["b"][ONE[0]]
    long = pd.DataFrame({"y": matrix.ravel(), "seed": np.repeat(np.arange(3), 80), "item": np.tile(np.arange(80), 3)})
    ms = anova_lm(ols("y ~ C(seed) + C(item)", long).fit())["mean_sq"]
    assert found.se**2 == pytest.approx((ms["C(seed)"] + ms["C(item)"] - ms["Residual"]) / 240, abs=1e-12)
    assert found.sd_seeds == pytest.approx(np.std(matrix.mean(axis=1), ddof=1))
    assert found.sd_items == pytest.approx(np.std(matrix.mean(axis=0), ddof=1))


def test_one_seed_is_the_bootstrap_of_scipy(made):
    answers = made.answers_of(
        made.draw_world(np.random.default_rng(2), {"a": 0.6, "b": 0.5}, {"a": 1, "b": 1}, ONE, 60)
    )
    found = estimate(answers, Resamples(answers, 20000, 0), "a", ONE[0], 0.95, "b")
    difference = answers.matrix("a", ONE[0])[0] - answers.matrix("b", ONE[0])[0]
    theirs = stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=20000, rng=1).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)
    assert found.se == pytest.approx(stats.sem(difference), abs=1e-12)
    assert np.isnan(found.sd_seeds)


def test_resampled_means_are_those_of_a_plain_loop(made):
    answers = made.answers_of(made.draw_world(np.random.default_rng(4), {"a": 0.6}, {"a": 3}, ONE, 30))
    resamples = Resamples(answers, 50, 9)
    from zlib import crc32

    stream = np.random.default_rng([9, crc32(ONE[0].encode())])
    counts = stream.multinomial(30, np.full(30, 1 / 30), size=50)
    matrix = answers.matrix("a", ONE[0])
    for row, mean in zip(counts, resamples.means[ONE[0]]["a"], strict=True):
        chosen = [item for item, count in enumerate(row) for _ in range(count)]
        assert mean == pytest.approx(np.mean([matrix[seed][item] for seed in range(3) for item in chosen]), abs=1e-12)


def test_macro_weighs_datasets_equally_whatever_their_size(made):
    rng = np.random.default_rng(5)
    world = {"a": {"small": rng.integers(0, 2, (2, 10)).astype(float), "large": rng.integers(0, 2, (2, 300)) * 1.0}}
    answers = made.answers_of(world)
    found = estimate(answers, Resamples(answers, 200, 0), "a", MACRO, 0.95)
    assert found.value == pytest.approx((world["a"]["small"].mean() + world["a"]["large"].mean()) / 2)
    assert found.n_items == 310


def test_degrees_of_freedom_are_welchs():
    rng = np.random.default_rng(6)
    one, two = rng.normal(0, 1, 5), rng.normal(0, 3, 9)
    ours = satterthwaite([one.var(ddof=1) / 5, two.var(ddof=1) / 9], [4, 8])
    assert ours == pytest.approx(stats.ttest_ind(one, two, equal_var=False).df, abs=1e-10)


def test_arms_with_unrelated_seeds_have_welchs_seed_error(made):
    """Two seeds against four, on items that no arm finds harder than another: only the seeds vary."""
    levels = {"a": [0.2, 0.5], "b": [0.1, 0.4, 0.2, 0.3]}
    world = {arm: {ONE[0]: np.repeat(np.array(own)[:, None], 50, axis=1)} for arm, own in levels.items()}
    answers = made.answers_of(world)
    found = estimate(answers, Resamples(answers, 200, 0), "a", ONE[0], 0.95, "b")
    expected = stats.ttest_ind(levels["a"], levels["b"], equal_var=False)
    assert found.value / found.se == pytest.approx(expected.statistic, abs=1e-9)
    assert found.df == pytest.approx(expected.df, abs=1e-9)


def test_interval_of_three_seeds_that_disagree_is_students(made):
    """When only seeds vary, the interval is the t interval of the seed means with its 4.30 standard errors."""
    means = np.array([0.3, 0.5, 0.46])
    answers = made.answers_of({"a": {ONE[0]: np.repeat(means[:, None], 40, axis=1)}})
    found = estimate(answers, Resamples(answers, 40000, 0), "a", ONE[0], 0.95)
    low, high = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.05)


def test_seeds_that_agree_leave_the_interval_of_the_items(made):
    row = np.random.default_rng(7).integers(0, 2, 100).astype(float)
    several, one = (made.answers_of({"a": {ONE[0]: np.tile(row, (seeds, 1))}}) for seeds in (3, 1))
    ours, theirs = (estimate(answers, Resamples(answers, 500, 0), "a", ONE[0], 0.95) for answers in (several, one))
    assert ours.se == pytest.approx(theirs.se, abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.016)  # percentiles and BCa
    assert ours.sd_seeds == 0


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_right_or_all_wrong_is_no_certainty(made, seeds, share):
    answers = made.answers_of({"a": {ONE[0]: np.full((seeds, 50), share)}})
    found = cell(answers, Resamples(answers, 100, 0), "a", ONE[0], 0.95)
    assert (found.low, found.high) == pytest.approx(wilson(50 * share, 50, 0.95))
    assert found.high - found.low > 0.05


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(("datasets", "items"), [(2, 1), (7, 60)])
def test_the_macro_average_of_all_right_is_wilsons_of_all_items(made, datasets, items, seeds):
    answers = made.answers_of({"a": {name: np.ones((seeds, items)) for name in made.datasets[:datasets]}})
    found = cell(answers, Resamples(answers, 4000, 0), "a", MACRO, 0.95)
    assert (found.low, found.high) == pytest.approx(wilson(datasets * items, datasets * items, 0.95), abs=0.002)


@pytest.mark.parametrize("accuracy", [0.8, 0.9, 0.95, 0.98])
def test_the_macro_average_near_its_edge_covers_95_percent(made, accuracy):
    """All outcomes of two datasets of six items, each with its probability; resampling alone covers 91 to 21 %."""
    covered = 0.0
    for counts in product(range(7), repeat=2):
        rows = {name: np.repeat([[1.0, 0.0]], [n, 6 - n], axis=1) for name, n in zip(TWO, counts, strict=True)}
        answers = made.answers_of({"a": rows})
        found = cell(answers, Resamples(answers, 400, 1), "a", MACRO, 0.95)
        chance = stats.binom.pmf(counts, 6, accuracy).prod()
        covered += chance * (found.low <= accuracy <= found.high + 1e-9)
    assert covered >= 0.95


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_difference_that_does_not_vary_has_tangos_interval(made, share):
    """Score test of paired shares (Tango 1998): of n items `share`·n are right in one arm only, none in the other."""
    n = 25
    answers = made.answers_of({"a": {ONE[0]: np.full((1, n), share)}, "b": {ONE[0]: np.zeros((1, n))}})
    found = estimate(answers, Resamples(answers, 4000, 0), "a", ONE[0], 0.95, "b")

    def statistic(delta):
        q = np.linspace(max(0.0, -delta), (1 - delta) / 2 - 1e-9, 20001)  # probability that only b is right
        q = q[np.argmax(xlogy(share * n, q + delta) + xlogy(n - share * n, 1 - 2 * q - delta))]
        return (share - delta) / np.sqrt((2 * q + delta - delta**2) / n)

    assert statistic(found.low) == pytest.approx(1.96, abs=0.01)
    assert found.high == 1 if share else statistic(found.high) == pytest.approx(-1.96, abs=0.01)


def test_cell_of_one_seed_is_wilsons(made):
    answers = made.answers_of(made.draw_world(np.random.default_rng(8), {"a": 0.3}, {"a": 1}, ONE, 200))
    found = cell(answers, Resamples(answers, 100, 0), "a", ONE[0], 0.95)
    assert (found.low, found.high) == wilson(answers.matrix("a", ONE[0]).sum(), 200, 0.95)


def test_tied_set_has_the_best_arm_and_its_equals(made):
    world = made.draw_world(np.random.default_rng(9), {"a": 0.7, "b": 0.7, "c": 0.3}, dict.fromkeys("abc", 2), ONE, 200)
    answers = made.answers_of(world)
    resamples = Resamples(answers, 500, 0)
    assert tied_set(answers, resamples, ONE[0], 0.95, ["a", "b", "c"]) == {"a", "b"}
    assert tied_set(answers, resamples, ONE[0], 0.95, ["c"]) == {"c"}


def test_bca_is_scipys(made):
    """Skewed partial credit of one seed: the bias-corrected and accelerated interval, within the resampling's noise."""
    values = np.random.default_rng(0).beta(0.3, 2, 40)
    answers = made.answers_of({"a": {ONE[0]: values[None]}})
    found = cell(answers, Resamples(answers, 40000, 0), "a", ONE[0], 0.95)
    theirs = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=40000, rng=1).confidence_interval
    plain = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=40000, rng=1).confidence_interval
    assert found.method == "bca"
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.0025)
    assert abs(plain.high - theirs.high) > 0.003


def test_seeds_that_coincide_by_accident_make_no_certainty(made):
    """Three seeds with the same number right, but on different items: se is that of the items at least."""
    rng = np.random.default_rng(3)
    rows = [rng.permutation(np.repeat([0.0, 1.0], [50, 50])) for _ in range(3)]
    answers = made.answers_of({"a": {ONE[0]: np.stack(rows)}})
    found = estimate(answers, Resamples(answers, 2000, 0), "a", ONE[0], 0.95)
    assert found.sd_seeds == 0
    assert found.safe.se >= stats.sem(np.mean(rows, axis=0)) - 1e-12
    assert found.high - found.low > 0.4 * 2 * 1.96 * stats.sem(np.mean(rows, axis=0))


@pytest.mark.parametrize("clustered", [False, True])
def test_pairs_at_once_are_the_pairs_one_by_one(made, monkeypatch, clustered):
    """Arms with the same seeds, with others and with one, and two that answer a dataset alike; three pairs at a time."""
    seeds = {"a": 3, "b": 3, "c": 3, "d": 3, "e": 3, "f": 2, "g": 1, "h": 1}
    world = made.draw_world(np.random.default_rng(2), dict.fromkeys(seeds, 0.5), seeds, TWO, 24, 0.2)
    world["e"][ONE[0]] = world["a"][ONE[0]]
    codes = {ONE[0]: np.repeat(np.arange(12), 2)} if clustered else {}
    answers = replace(made.answers_of(world), clusters=codes)
    resamples = Resamples(answers, 300, 0)
    monkeypatch.setattr("mtkv.stats.ranks.CHUNK", 3)
    for column in (ONE[0], MACRO):
        fought = duels(answers, resamples, column, 0.95, list(seeds))
        assert fought.arms == list(seeds)
        for (i, arm), (j, other) in permutations(enumerate(seeds), 2):
            one = estimate(answers, resamples, min(arm, other), column, 0.95, max(arm, other))
            side = 1 if i < j else -1
            assert side * fought.value[i, j] == pytest.approx(one.value, abs=1e-12)
            limits = (one.low, one.high) if i < j else (-one.high, -one.low)
            assert (fought.low[i, j], fought.high[i, j]) == pytest.approx(limits, abs=1e-12)
            assert fought.p[i, j] == two_level_p(one, 0.0)
            assert fought.n_seeds[i, j] == one.n_seeds


def test_the_limits_of_a_pair_are_those_of_its_resamples_written_out(made):
    """Same three seeds: t of the seeds' means beside the bootstrap of the items, shrunk to what the seeds leave."""
    world = made.draw_world(np.random.default_rng(7), {"a": 0.6, "b": 0.5}, {"a": 3, "b": 3}, ONE, 50, 0.3)
    answers = made.answers_of(world)
    resamples = Resamples(answers, 400, 5)
    found = estimate(answers, resamples, "a", ONE[0], 0.9, "b")
    gap = world["a"][ONE[0]] - world["b"][ONE[0]]
    shares = gap.mean(axis=0)
    residual = gap - gap.mean(axis=1, keepdims=True) - shares + gap.mean()
    own = shares.var(ddof=1) - (residual**2).sum() / (2 * 49) / 3
    counts = np.random.default_rng([5, crc32(ONE[0].encode())]).multinomial(50, np.full(50, 1 / 50), size=400)
    items = np.sqrt(own / shares.var(ddof=1)) * (counts @ shares / 50 - shares.mean())
    draws = shares.mean() + items + stats.sem(gap.mean(axis=1)) * resamples.seed_draws(2, 0)
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [0.05, 0.95]), abs=1e-12)


def test_resamples_do_not_depend_on_how_many_are_drawn_at_a_time(made, monkeypatch):
    answers = made.answers_of(
        made.draw_world(np.random.default_rng(2), {"a": 0.5, "b": 0.5}, {"a": 2, "b": 2}, TWO, 30)
    )
    answers = replace(answers, clusters={ONE[0]: np.repeat(np.arange(10), 3)})
    whole = Resamples(answers, 100, 0)
    monkeypatch.setattr("mtkv.stats.bootstrap.CHUNK", 7)
    parts = Resamples(answers, 100, 0)
    for dataset in TWO:
        for arm in "ab":
            assert parts.means[dataset][arm] == pytest.approx(whole.means[dataset][arm], abs=1e-12)
            assert parts.flips[dataset][arm] == pytest.approx(whole.flips[dataset][arm], abs=1e-12)
        assert parts.flip_means[dataset] == pytest.approx(whole.flip_means[dataset], abs=1e-12)


@pytest.mark.parametrize("size", [10, 400, 5000])
def test_quantiles_are_numpys(size):
    rng = np.random.default_rng(0)
    draws = np.stack([rng.normal(size=size), rng.standard_t(2, size), rng.integers(0, 3, size) * 1.0, np.zeros(size)])
    draws = np.concatenate([draws, np.sort(draws, axis=-1), draws])
    draws[-4:, :: max(1, size // 200)] -= 5  # those that a look at a few sees are the lowest of all
    for tails in (np.tile([0.025, 0.975], (12, 1)), np.tile([0.3, 0.99], (12, 1)), rng.uniform(size=(12, 2))):
        expected = [np.quantile(row, own) for row, own in zip(draws, tails, strict=True)]
        assert quantiles(draws, tails) == pytest.approx(np.array(expected), abs=1e-12)
