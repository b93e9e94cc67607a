"""Claims get the verdict that the data allow: planted effects are found, nulls and gaps are not turned into findings."""

import numpy as np
import pandas as pd
import pytest

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.claims.verdicts import Evidence, claims_table, grade, judge
from mtkv.stats.multiplicity import partial_conjunction

BEATS = {"statement": "KV beats text.", "kind": "difference", "arm": "kv", "baseline": "sft", "threshold": 0}
TWIN = BEATS | {"twin": "twin"}
IMPROVED = {"statement": "Datasets improve.", "kind": "datasets_improved", "arm": "kv", "baseline": "sft"}
ACCURATE = {"statement": "Accurate.", "kind": "accuracy", "arm": "kv", "dataset": "pocket_gsm8k"}
REACHES = {"statement": "Reaches the weakest.", "kind": "reaches", "arm": "kv", "baselines": ["teacher", "raw"]}
SEEDS = {"raw": 1, "sft": 3, "kv": 3, "twin": 3, "teacher": 1}
LEVEL = {"raw": 0.25, "sft": 0.5, "kv": 0.5, "twin": 0.5, "teacher": 0.9}


@pytest.fixture
def table_of(made):
    """`table_of(claims, accuracies, …)` → claims table of a made study, indexed by claim."""

    def build(claims, accuracies, seed=0, items=60, seed_sd=0.0, resamples=1000, gaps=()):
        world = made.draw_world(np.random.default_rng(seed), LEVEL | accuracies, SEEDS, made.datasets, items, seed_sd)
        answers = made.answers_of(world)
        answers.reasons.update(dict.fromkeys(gaps, "failed: out of memory"))
        study = made.make_study(claims=claims)
        return claims_table(answers, Resamples(answers, resamples, seed), study.claims, 0.95).set_index("claim")

    return build


def test_planted_effect_is_found_and_beyond_it_refuted(table_of):
    claims = {f"by_{points}": BEATS | {"threshold": points} for points in (0, 25)} | {
        "reverse": BEATS | {"arm": "sft", "baseline": "kv"}
    }
    table = table_of(claims, {"kv": 0.62})
    assert table["verdict"].to_dict() == {"by_0": "supported", "by_25": "refuted", "reverse": "refuted"}
    assert table.loc["by_0", "low"] < 12 < table.loc["by_0", "high"]
    assert "kv − sft = +" in table.loc["by_0", "why"]
    assert "420 items, 3 seeds" in table.loc["by_0", "why"]


def test_threshold_inside_the_interval_is_undecided_and_says_what_could_be_seen(table_of):
    table = table_of({"same": BEATS}, {"kv": 0.5})
    assert table.loc["same", "verdict"] == "undecided"
    assert table.loc["same", "low"] < 0 < table.loc["same", "high"]
    assert "smallest detectable difference" in table.loc["same", "why"]


def test_a_kv_claim_needs_to_beat_its_twin(table_of):
    claims = {"plain": BEATS, "with_twin": TWIN}
    both_up = table_of(claims, {"kv": 0.62, "twin": 0.62})
    assert both_up["verdict"].to_dict() == {"plain": "supported", "with_twin": "undecided"}
    assert "control twin twin" in both_up.loc["with_twin", "why"]
    twin_down = table_of(claims, {"kv": 0.62})
    assert twin_down["verdict"].to_dict() == {"plain": "supported", "with_twin": "supported"}
    assert "kv − twin" in twin_down.loc["with_twin", "why"]
    assert twin_down.loc["with_twin", "twin"] == "twin"


def test_datasets_improved_counts_sure_datasets_and_names_the_rest(table_of):
    claims = {"two": IMPROVED | {"at_least": 2}, "seven": IMPROVED | {"at_least": 7}}
    strong = table_of(claims, {"kv": 0.8}, items=150)
    assert set(strong["verdict"]) == {"supported"}
    assert strong.loc["seven", ["delta", "low", "high", "threshold"]].tolist() == [7, 7, 7, 7]
    weak = table_of(claims, {"kv": 0.53})
    assert set(weak["verdict"]) == {"undecided"}
    assert weak.loc["two", "low"] < 2 <= weak.loc["two", "delta"]
    assert "point estimates are up" in weak.loc["two", "why"]
    worse = table_of(claims, {"kv": 0.1}, items=150)
    assert set(worse["verdict"]) == {"refuted"}


@pytest.mark.parametrize(("threshold", "verdict"), [(40, "supported"), (52, "undecided"), (75, "refuted")])
def test_accuracy_is_weighed_with_its_interval(table_of, threshold, verdict):
    table = table_of({"claim": ACCURATE | {"threshold": threshold}}, {"kv": 0.55}, items=200)
    assert table.loc["claim", "verdict"] == verdict


def test_accuracy_of_one_seed_is_an_exact_binomial_test(made):
    from scipy import stats

    answers = made.answers_of({"raw": {"pocket_gsm8k": np.repeat([[0.0, 1.0]], [30, 20], axis=1)}})
    study = made.make_study(claims={"c": ACCURATE | {"arm": "raw", "threshold": 25}})
    row = claims_table(answers, Resamples(answers, 100, 0), study.claims, 0.95).iloc[0]
    assert row["p"] == pytest.approx(stats.binomtest(20, 50, 0.25).pvalue, abs=1e-12)


TWO = ("pocket_bbh", "pocket_gpqa")
CERTAIN = {
    "accuracy": {"kind": "accuracy", "dataset": "macro", "threshold": 90},
    "equivalent": {"kind": "equivalent", "baseline": "sft", "margin": 50},
    "same": {"kind": "equivalent", "baseline": "twin", "margin": 50},
    "worse": {"kind": "difference", "arm": "sft", "baseline": "kv"},
    "twin": {"kind": "difference", "baseline": "sft", "twin": "twin"},
    "reaches": {"kind": "reaches", "baselines": ["twin"], "threshold": -10},
    "behind": {"kind": "reaches", "arm": "sft", "baselines": ["kv"], "threshold": -10},
    "improved": {"kind": "datasets_improved", "arm": "sft", "baseline": "kv", "at_least": 1},
    "differ": {"kind": "differ", "baselines": ["sft"]},
}


@pytest.mark.parametrize(("items", "decided"), [(1, set()), (200, set(CERTAIN))])
def test_answers_that_do_not_vary_decide_nothing_where_they_are_few(made, items, decided):
    """kv and its twin answer all items of two datasets right, sft none."""
    right = dict.fromkeys(TWO, np.ones((1, items)))
    answers = made.answers_of({"kv": right, "twin": right, "sft": dict.fromkeys(TWO, np.zeros((1, items)))})
    claims = {name: {"statement": "x", "arm": "kv"} | claim for name, claim in CERTAIN.items()}
    claims = made.make_study(claims=claims, datasets=list(TWO)).claims
    table = claims_table(answers, Resamples(answers, 2000, 0), claims, 0.95).set_index("claim")
    assert set(table.index[table["verdict"] != "undecided"]) == decided - {"twin"}
    assert (table["p"] < 0.05).to_dict() == {name: name in decided - {"twin"} for name in CERTAIN}
    if decided:
        refuted = {"equivalent", "worse", "behind", "improved"}
        assert set(table.index[table["verdict"] == "refuted"]) == refuted


def test_reaches_takes_the_weakest_and_a_margin(table_of):
    claims = {"weakest": REACHES, "strong": REACHES | {"baselines": ["teacher"]}}
    claims["margin"] = REACHES | {"baselines": ["teacher"], "threshold": -60}
    table = table_of(claims, {})
    assert table["verdict"].to_dict() == {"weakest": "supported", "strong": "refuted", "margin": "supported"}
    assert table.loc["weakest", "baseline"] == "raw"


RECOVERS = {"statement": "Recovers half.", "kind": "recovers", "arm": "kv", "baseline": "sft", "reference": "twin"}


def test_share_of_a_gain_has_fiellers_interval(table_of):
    """Against the share itself, and Fieller's formula from the errors of the three arms, which are independent here."""
    table = table_of({"half": RECOVERS, "most": RECOVERS | {"threshold": 90}}, {"kv": 0.65, "twin": 0.8}, items=400)
    half = table.loc["half"]
    difference = table_of({"own": BEATS, "full": BEATS | {"arm": "twin"}}, {"kv": 0.65, "twin": 0.8}, items=400)
    own, full = difference.loc["own"], difference.loc["full"]
    assert half["delta"] == pytest.approx(100 * own["delta"] / full["delta"])
    a, b = own["delta"], full["delta"]
    spread_a, spread_b = ((one["high"] - one["low"]) / 2 for one in (own, full))
    shared = (spread_a**2 + spread_b**2) / 4  # both differences contain the error of sft, about half of each variance
    roots = np.roots([b**2 - spread_b**2, -2 * (a * b - shared), a**2 - spread_a**2])
    assert half[["low", "high"]].tolist() == pytest.approx(sorted(100 * roots), abs=3)
    assert table["verdict"].to_dict() == {"half": "supported", "most": "refuted"}
    assert "% of the gain of twin over sft" in half["why"]


def test_no_share_between_arms_of_other_seeds(table_of):
    table = table_of({"half": RECOVERS | {"reference": "teacher"}}, {"kv": 0.65})
    assert table.loc["half", "verdict"] == "undecided"
    assert "teacher and sft have different seeds" in table.loc["half", "why"]


def test_no_share_of_a_gain_that_is_not_there(table_of):
    table = table_of({"half": RECOVERS}, {"kv": 0.65, "twin": 0.5})
    assert table.loc["half", "verdict"] == "undecided"
    assert "twin does not gain on sft for sure" in table.loc["half", "why"]
    assert np.isnan(table.loc["half", "delta"])


def test_missing_data_leave_a_claim_undecided_and_are_named(table_of):
    claims = {"kv": BEATS, "twin": TWIN, "sets": IMPROVED | {"at_least": 1}, "gsm": ACCURATE | {"threshold": 10}}
    claims |= {"reach": REACHES, "untouched": BEATS | {"arm": "sft", "baseline": "raw"}}
    table = table_of(claims, {"kv": 0.9}, gaps=[("kv", 43, "pocket_gsm8k"), ("twin", 42, "pocket_bbh")])
    touched = table.drop(index="untouched")
    assert set(touched["verdict"]) == {"undecided"}
    assert touched["why"].str.contains("pocket_gsm8k, seed 43: failed: out of memory").all()
    assert touched[["delta", "low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert table.loc["untouched", "verdict"] == "supported"


def test_missing_twin_is_named(table_of):
    table = table_of({"claim": TWIN}, {"kv": 0.7}, gaps=[("twin", 42, "pocket_bbh")])
    assert table.loc["claim", "verdict"] == "undecided"
    assert "twin has no result (pocket_bbh" in table.loc["claim", "why"]


def test_p_values_are_adjusted_over_all_claims_of_the_study(table_of):
    claims = {f"c{i}": BEATS | {"threshold": i / 10} for i in range(4)}
    table = table_of(claims, {"kv": 0.55}, seed=1)
    ranked = table.sort_values("p")
    expected = np.minimum(1, np.maximum.accumulate(ranked["p"].to_numpy() * [4, 3, 2, 1]))
    assert ranked["p_holm"].to_numpy() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "p_holm", "verdict"),
    [
        ({}, 0.01, "supported"),
        ({}, 0.05, "undecided"),
        ({"low": 0.0}, 0.01, "undecided"),
        ({"low": 0.0, "inclusive": True}, 0.01, "supported"),
        ({"low": -1.0}, 0.01, "undecided"),
        ({"low": -3.0, "high": -1.0, "p": 0.01}, 0.5, "refuted"),
        ({"low": -3.0, "high": -1.0, "p": 0.06}, 0.06, "undecided"),
        ({"low": -3.0, "high": 0.0, "p": 0.01}, 0.01, "undecided"),
        ({"contradicted": "it is worse than its twin", "p": 0.01}, 0.01, "refuted"),
        ({"contradicted": "it is worse than its twin", "p": 0.06}, 0.06, "undecided"),
        ({"unmet": "it does not beat its twin"}, 0.01, "undecided"),
        ({"missing": "kv has no result"}, float("nan"), "undecided"),
    ],
)
def test_verdicts(changes, p_holm, verdict):
    evidence = Evidence(**({"finding": "f", "threshold": 0.0, "delta": 2.0, "low": 1.0, "high": 3.0} | changes))
    found, why = judge(evidence, p_holm, 0.05)
    assert found == verdict
    assert why.endswith(".")


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ([("minimum", "supported"), ("ideal", "supported"), ("stretch", "supported")], "stretch"),
        ([("minimum", "supported"), ("ideal", "undecided"), ("stretch", "supported")], "minimum"),
        ([("minimum", "supported"), ("minimum", "refuted"), ("ideal", "supported")], "none"),
        ([("minimum", "supported"), ("ideal", "supported"), (None, "refuted")], "ideal"),
        ([("ideal", "supported")], "ideal"),
        ([(None, "supported")], "none"),
        ([], "none"),
    ],
)
def test_grade_is_the_highest_level_all_supported(claims, expected):
    assert grade(pd.DataFrame(claims, columns=["level", "verdict"])) == expected


def test_a_claim_that_loses_to_its_twin_is_refuted(table_of):
    table = table_of({"claim": TWIN}, {"kv": 0.6, "twin": 0.85})
    assert table.loc["claim", "verdict"] == "refuted"
    assert "worse than its control twin" in table.loc["claim", "why"]
    assert table.loc["claim", "twin_high"] < 0 < table.loc["claim", "delta"]


def test_as_good_as_needs_two_one_sided_tests(table_of):
    claim = {"statement": "As good.", "kind": "equivalent", "arm": "kv", "baseline": "sft"}
    claims = {f"m{margin}": claim | {"margin": margin} for margin in (0.5, 15)}
    table = table_of(claims, {"kv": 0.5}, items=150)
    assert table["verdict"].to_dict() == {"m0.5": "undecided", "m15": "supported"}
    assert table["threshold"].to_dict() == {"m0.5": 0.5, "m15": 15}
    assert table_of(claims, {"kv": 0.75}, items=150).loc["m15", "verdict"] == "refuted"


def test_some_arms_differ(table_of):
    claim = {"statement": "Differ.", "kind": "differ", "arm": "sft", "baselines": ["kv", "twin"]}
    far = table_of({"claim": claim}, {"kv": 0.7})
    assert far.loc["claim", "verdict"] == "supported"
    assert "kv − " in far.loc["claim", "why"]
    assert far.loc["claim", "delta"] > 0
    assert table_of({"claim": claim}, {}).loc["claim", "verdict"] == "undecided"
    gap = table_of({"claim": claim}, {}, gaps=[("twin", 43, "pocket_bbh")])
    assert "twin has no result" in gap.loc["claim", "why"]


def test_partial_conjunction_is_bonferroni_at_one_and_the_largest_p_at_all():
    p = np.array([0.04, 0.001, 0.2])
    assert partial_conjunction(p, 1) == pytest.approx(3 * 0.001)
    assert partial_conjunction(p, 2) == pytest.approx(2 * 0.04)
    assert partial_conjunction(p, 3) == pytest.approx(0.2)
    assert partial_conjunction(p, 4) == 1
