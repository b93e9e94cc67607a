"""The statistics do what they say on data whose truth is known: coverage, type-I error, power, clusters."""

import numpy as np
import pytest
from scipy.special import ndtri

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.cells import cell
from mtkv.stats.claims.verdicts import claims_table
from mtkv.stats.intervals import estimate
from mtkv.stats.items import MACRO, Answers
from mtkv.stats.paired_tests import difference
from mtkv.stats.power import noncentrality

pytestmark = pytest.mark.slow
ONE = ["pocket_bbh"]
TWO = ["pocket_bbh", "pocket_gpqa"]


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "datasets"), [(1, 0.0, ONE), (3, 0.2, ONE), (3, 0.4, ONE), (5, 0.1, ONE), (3, 0.2, TWO)]
)
def test_95_percent_intervals_of_a_difference_cover_93_to_97(made, seeds, seed_sd, datasets):
    rng = np.random.default_rng(17)
    column = MACRO if len(datasets) > 1 else datasets[0]
    covered = 0
    for study in range(500):
        world = made.draw_world(rng, {"a": 0.5, "b": 0.5}, {"a": seeds, "b": seeds}, datasets, 80, seed_sd)
        answers = made.answers_of(world)
        found = estimate(answers, Resamples(answers, 400, study), "a", column, 0.95, "b")
        covered += found.low <= 0 <= found.high
    assert 0.93 <= covered / 500 <= 0.97


@pytest.mark.parametrize(("seeds", "accuracy"), [(1, 0.3), (3, 0.5)])
def test_95_percent_intervals_of_an_accuracy_cover_93_to_97(made, seeds, accuracy):
    rng = np.random.default_rng(18)
    covered = 0
    for study in range(500):
        answers = made.answers_of(made.draw_world(rng, {"a": accuracy}, {"a": seeds}, ONE, 100, 0.2 * (seeds > 1)))
        found = cell(answers, Resamples(answers, 400, study), "a", ONE[0], 0.95)
        covered += found.low <= accuracy <= found.high
    assert 0.93 <= covered / 500 <= 0.97


@pytest.mark.parametrize("paired", [False, True])
def test_thirty_passages_of_ten_questions(paired):
    """Naive intervals of clustered items cover about 75 %, clustered ones 95; so do those of paired differences."""
    rng = np.random.default_rng(5)
    codes = np.repeat(np.arange(30), 10)
    covered = np.zeros(2)
    for study in range(400):
        correct = {}
        for arm in "ab":
            own = rng.normal(0, np.sqrt(0.27), 30)[codes] + rng.normal(0, np.sqrt(0.73), 300)
            correct[arm, 42, ONE[0]] = (own + ndtri(0.6) > 0).astype(float)
        for place, clusters in enumerate(({}, {ONE[0]: codes})):
            answers = Answers(None, {"a": [42], "b": [42]}, ONE, correct, {}, clusters)
            resamples = Resamples(answers, 100, study)
            found = (
                estimate(answers, resamples, "a", ONE[0], 0.95, "b")
                if paired
                else cell(answers, resamples, "a", ONE[0], 0.95)
            )
            covered[place] += found.low <= (0 if paired else 0.6) <= found.high
    naive, clustered = covered / 400
    assert 0.70 <= naive <= 0.80
    assert 0.93 <= clustered <= 0.97


@pytest.mark.parametrize("seed_sd", [0.0, 0.1])
def test_type_one_error_of_the_whole_claims_procedure_is_at_most_5_percent(made, seed_sd):
    """200 null studies: arms are equally good, seeds and items vary; a study errs when it supports any of its claims."""
    one = {"statement": "x", "kind": "difference", "arm": "kv", "baseline": "sft"}
    claims = {"beats": one, "with_twin": one | {"twin": "twin"}, "reverse": one | {"arm": "sft", "baseline": "kv"}}
    claims |= {"twin": one | {"arm": "twin"}, "two": one | {"kind": "datasets_improved", "at_least": 2}}
    claims |= {"one": one | {"kind": "datasets_improved", "at_least": 1}}
    claims |= {"differ": {"statement": "x", "kind": "differ", "arm": "kv", "baselines": ["sft", "twin"]}}
    claims = made.make_study(claims=claims, datasets=made.datasets[:3]).claims
    rng = np.random.default_rng(29)
    wrong = 0
    for study in range(200):
        arms = ("sft", "kv", "twin")
        world = made.draw_world(rng, dict.fromkeys(arms, 0.5), dict.fromkeys(arms, 3), made.datasets[:3], 40, seed_sd)
        answers = made.answers_of(world)
        wrong += (claims_table(answers, Resamples(answers, 300, study), claims, 0.95)["verdict"] == "supported").any()
    assert wrong / 200 <= 0.05


@pytest.mark.parametrize(("items", "disagreement"), [(180, 0.2), (1000, 0.3)])
def test_power_at_the_printed_smallest_detectable_difference(made, items, disagreement):
    """One seed: a true difference of the printed size is found in 75 to 85 % of studies."""
    factor = noncentrality(items - 1.0, 0.95)
    truth = factor * np.sqrt(disagreement / (items + factor**2))  # where the expected print equals the truth
    rng = np.random.default_rng(3)
    found, printed = [], []
    for study in range(600):
        draw = rng.uniform(size=items)
        ours, theirs = draw < (disagreement + truth) / 2, draw > 1 - (disagreement - truth) / 2
        answers = made.answers_of({"a": {ONE[0]: ours[None] * 1.0}, "b": {ONE[0]: theirs[None] * 1.0}})
        one = difference(answers, Resamples(answers, 20, study), "a", "b", ONE[0], 0.95)
        printed.append(one.mdd)
        found.append(one.p < 0.05 and one.estimate.value > 0)
    assert np.mean(printed) == pytest.approx(truth, rel=0.02)
    assert 0.75 <= np.mean(found) <= 0.85


def test_power_at_the_printed_difference_with_seeds(made):
    """Five seeds that differ by 5 points: the typical print, planted, is found in 75 to 85 %."""
    rng = np.random.default_rng(4)

    def study(truth, number):
        shift = truth + rng.normal(0, 0.05, (5, 1))
        draw = rng.uniform(size=(5, 300))
        ours, theirs = draw < (0.3 + shift) / 2, draw > 1 - (0.3 - shift) / 2
        answers = made.answers_of({"a": {ONE[0]: ours * 1.0}, "b": {ONE[0]: theirs * 1.0}})
        return difference(answers, Resamples(answers, 400, number), "a", "b", ONE[0], 0.95)

    truth = np.sqrt(np.mean([study(0.0, number).mdd ** 2 for number in range(200)]))
    found = [(one.p < 0.05 and one.estimate.low > 0) for one in (study(truth, number) for number in range(400))]
    assert 0.75 <= np.mean(found) <= 0.85


def test_rank_intervals_hold_the_true_ranks(made):
    from mtkv.stats.ranks import duels, places

    rng = np.random.default_rng(6)
    arms, held = dict(zip("abcd", (0.6, 0.5, 0.5, 0.4), strict=True)), 0
    truth = {"a": (1, 1), "b": (2, 3), "c": (2, 3), "d": (4, 4)}
    for study in range(150):
        answers = made.answers_of(made.draw_world(rng, arms, dict.fromkeys(arms, 1), ONE, 80))
        fought = duels(answers, Resamples(answers, 400, study), ONE[0], 0.95, list(arms))
        found = places(answers, ONE[0], fought, 0.95, list(arms))
        held += all(found[arm].low <= low and high <= found[arm].high for arm, (low, high) in truth.items())
    assert held / 150 >= 0.9
