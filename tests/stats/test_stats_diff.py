"""The diff of two studies: nothing between a study and itself, and what was changed when something was."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mtkv.provenance.files import write_json
from mtkv.stages.compare import compare
from mtkv.study_diff.diff import diff_studies, flatten

SEEDS = {"raw": 1, "sft": 3, "kv": 3, "twin": 3, "teacher": 1}
CLAIMS = {"c": {"statement": "Training helps.", "kind": "difference", "arm": "sft", "baseline": "raw"}}


@pytest.fixture
def study_a(made, tmp_path):
    """A results folder with cards and compare/ on two datasets of 40 items."""
    two = made.datasets[:2]
    accuracy = {"raw": 0.3, "sft": 0.5, "kv": 0.5, "twin": 0.5, "teacher": 0.9}
    world = made.draw_world(np.random.default_rng(3), accuracy, SEEDS, two, 40, 0.05)
    study = made.make_study(datasets=two, claims=CLAIMS, comparison={"resamples": 200})
    compare(study, made.write_scores(tmp_path / "scores", world), [], tmp_path / "a/compare")
    packages = {"python": "3.11.7", "torch": "2.9"}
    card = {"stage": "data", "packages": packages, "code_digest": "aa", "result": {"hashes": {"train": "11"}}}
    write_json(tmp_path / "a/data/card.json", card)
    return tmp_path / "a"


@pytest.fixture
def study_b(study_a):
    folder = study_a.parent / "b"
    shutil.copytree(study_a, folder)
    return folder


def test_a_study_does_not_differ_from_itself(study_a, study_b):
    found = diff_studies(study_a, study_b, resamples=100)
    assert found.same
    assert len(found.scores) == 5 * 3
    assert (found.scores["delta"] == 0).all()


def test_changes_are_listed_and_nothing_else(study_a, study_b):
    config = json.loads((study_b / "compare/study.json").read_text())
    config["arms"]["sft"]["training"]["steps"] = 20
    write_json(study_b / "compare/study.json", config)
    card = json.loads((study_b / "data/card.json").read_text())
    card["packages"]["torch"], card["result"]["hashes"]["train"] = "2.10", "22"
    write_json(study_b / "data/card.json", card)
    claims = pd.read_parquet(study_b / "compare/claims.parquet").assign(verdict="refuted")
    claims.to_parquet(study_b / "compare/claims.parquet")
    found = diff_studies(study_a, study_b, resamples=100)
    assert found.config.to_numpy().tolist() == [["arms.sft.training.steps", "10", "20"]]
    assert found.data.to_numpy().tolist() == [["data.hashes.train", "11", "22"]]
    assert found.versions.to_numpy().tolist() == [["package torch", "2.9", "2.10"]]
    assert found.claims[["claim", "verdict_b"]].to_numpy().tolist() == [["c", "refuted"]]
    assert not found.same


def test_scores_are_paired_on_the_items_of_both(study_a, study_b, made):
    one, two = made.datasets[:2]
    items = pd.read_parquet(study_b / "compare/items.parquet")
    raw = (items["arm"] == "raw") & (items["dataset"] == one)
    items.loc[raw, "correct"] = 1 - items.loc[raw, "correct"]
    items = items[~(raw & items["item"].str.endswith(("0", "1")))]
    items = items[~((items["arm"] == "kv") & (items["dataset"] == two) & (items["seed"] == 43))]
    items = items[items["arm"] != "twin"].sample(frac=1, random_state=0)
    items.to_parquet(study_b / "compare/items.parquet")
    scores = diff_studies(study_a, study_b, resamples=200).scores.set_index(["arm", "dataset"])
    row = scores.loc[("raw", one)]
    before = pd.read_parquet(study_a / "compare/items.parquet").query("arm == 'raw' and dataset == @one")
    kept = before[~before["item"].str.endswith(("0", "1"))]["correct"]
    assert (row.n_items, row.only_a, row.only_b, row.status) == (32, 8, 0, "partial")
    assert row.delta == pytest.approx((1 - kept).mean() - kept.mean())
    assert row.p == pytest.approx(stats.binomtest(int(kept.sum()), 32).pvalue, abs=1e-10)
    assert (scores.loc["kv"].loc[[two, "macro"], "status"] == "missing").all()
    assert "43" in scores.loc[("kv", two), "reason"] or "seed" in scores.loc[("kv", two), "reason"]
    assert set(scores.loc["twin"]["status"]) == {"missing"}
    assert scores.loc["sft"]["delta"].tolist() == [0, 0, 0]


def test_flatten_names_every_leaf():
    assert flatten({"a": {"b": [1, {"c": None}]}, "d": []}) == {"a.b[0]": 1, "a.b[1].c": None, "d": []}
