"""Arms with KV, the way in which they move knowledge, and what their gain is counted against, all read from the config."""

from pathlib import Path

import pytest
import yaml

from mtkv.config.study import load_study, read_study
from mtkv.stats.transfers import transfers

CONFIG = Path(__file__).parents[2] / "config"


@pytest.fixture
def raw():
    return yaml.safe_load((CONFIG / "config.yaml").read_text(encoding="utf-8"))


def known(study):
    return {one.arm: (one.kinds, one.without, one.twin) for one in transfers(study)}


def test_transfers_of_the_pocket_study():
    experts = ("experts of its origin",)
    plain = dict.fromkeys(("single", "fixed", "similarity", "learnable", "teacher_ce"), (experts, "sft", None))
    assert known(read_study(CONFIG / "config.yaml")) == plain | {
        "oracle": (experts, "sft", "oracle_shuffled"),
        "merged_kv": (("merged student", *experts), "merged", "merged_kv_shuffled"),
        "foreign": (("foreign teachers",), "sft", "foreign_shuffled"),
    }


def test_latent_arms_are_counted_against_the_same_latents_without_kv():
    found = known(read_study(CONFIG / "config.yaml", CONFIG / "studies/kava-pocket.yaml"))
    study = read_study(CONFIG / "config.yaml", CONFIG / "studies/kava-pocket.yaml")
    for name, (kinds, without, twin) in found.items():
        assert ("latent tokens" in kinds) == (study.arms[name].latent is not None)
        if study.arms[name].kv.own:
            assert kinds == ("latent tokens", "its own KV")
        assert study.arms[without].kv is None
        assert twin is None or study.arms[twin].kv.control != "none"
    assert found["kava"][2] == "kava_shuffled"
    assert study.arms[found["kava"][1]].latent == study.arms["kava"].latent


@pytest.mark.parametrize("claimed", [True, False])
def test_a_claims_twin_comes_first_then_another_rows_kv(raw, claimed):
    raw["claims"] = {"one": raw["claims"]["kv_beats_sft"] | {"twin": "noise"}} if claimed else {}
    raw["arms"]["noise"] = {"extends": "oracle", "kv": {"control": "gaussian"}}
    raw["arms"] = {"noise": raw["arms"].pop("noise")} | raw["arms"]
    assert known(load_study(raw))["oracle"][2] == ("noise" if claimed else "oracle_shuffled")
    del raw["arms"]["oracle_shuffled"]
    assert known(load_study(raw))["oracle"][2] == "noise"


def test_without_an_equal_arm_it_is_the_baseline_and_the_baseline_itself_is_left_out(raw):
    raw["claims"] = {}
    raw["arms"]["oracle"]["training"] = {"learning_rate": 0.001}
    assert known(load_study(raw))["oracle"][1:] == ("sft", "oracle_shuffled")
    raw["comparison"]["baseline"] = "oracle"
    found = known(load_study(raw))
    assert "oracle" not in found
    assert found["single"][1] == "sft"


def test_a_twin_is_a_control(raw):
    raw["claims"] = {"one": raw["claims"]["kv_beats_sft"] | {"twin": "merged"}}
    assert known(load_study(raw))["oracle"][2] == "oracle_shuffled"
