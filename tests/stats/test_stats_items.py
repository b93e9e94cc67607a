"""Scores are read in any order, contradictions are refused by name, and a gap is a missing cell, never a smaller average."""

import json
import random

import numpy as np
import pytest

from mtkv.stats.items import MACRO, ScoresError, read_scores

SEEDS = {"sft": [42, 43], "raw": [42]}
TWO = ["pocket_gsm8k", "pocket_bbh"]


@pytest.fixture
def scores(made, tmp_path):
    """Paths of the scores of `sft` and `raw` on two datasets of 20 items."""
    world = made.draw_world(np.random.default_rng(0), {"sft": 0.6, "raw": 0.3}, {"sft": 2, "raw": 1}, TWO, 20)
    return made.write_scores(tmp_path, world)


def read(paths):
    return read_scores(paths, "made", SEEDS, TWO)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def at(paths, arm, seed, dataset):
    return next(path for path in paths if path.parts[-3:] == (arm, f"seed{seed}", f"{dataset}.json"))


def test_matrix_holds_what_the_files_hold(scores):
    answers = read(scores)
    first, second = (json.loads(at(scores, "sft", seed, "pocket_bbh").read_text())["items"] for seed in SEEDS["sft"])
    assert answers.matrix("sft", "pocket_bbh").tolist() == [first["correct"], second["correct"]]
    assert len(answers.items) == 3 * 2 * 20
    assert answers.missing("sft", MACRO) is None


def test_order_of_files_and_items_does_not_matter(scores):
    before = read(scores)

    def shuffle(content):
        items = content["items"]
        rows = list(zip(items["id"], items["cluster"], items["correct"], strict=True))
        random.Random(1).shuffle(rows)
        items["id"], items["cluster"], items["correct"] = map(list, zip(*rows, strict=True))

    for path in scores:
        edit(path, shuffle)
    after = read(reversed(scores))
    assert after.items.equals(before.items)
    assert all((after.correct[run] == before.correct[run]).all() for run in before.correct)


def test_failed_and_absent_runs_are_missing_with_their_reason(scores):
    edit(at(scores, "sft", 43, "pocket_bbh"), lambda s: s.update(status="failed", reason="out of memory", n=0))
    answers = read([path for path in scores if path != at(scores, "raw", 42, "pocket_gsm8k")])
    assert answers.missing("sft", "pocket_bbh") == "pocket_bbh, seed 43: failed: out of memory"
    assert answers.missing("sft", MACRO) == answers.missing("sft", "pocket_bbh")
    assert answers.missing("raw", MACRO) == "pocket_gsm8k, seed 42: no scores file"
    assert answers.missing("sft", "pocket_gsm8k") is None
    assert "pocket_bbh" not in set(answers.items.query("arm == 'sft' and seed == 43")["dataset"])


def _duplicate(content):
    content["items"]["id"][1] = content["items"]["id"][0]


def _drop_last(content):
    content["n"] -= 1
    for values in content["items"].values():
        values.pop()


def _rename_last(content):
    content["items"]["id"][-1] = "another-item"


def _repeat(content):
    ids = content["items"]["id"]
    content["items"]["same_as"] = [*ids[:3], ids[0], *ids[4:]]


def test_repeated_questions_are_read(scores):
    for path in scores:
        edit(path, _repeat)
    answers = read_scores(scores, "made", SEEDS, TWO, min_clusters=11)
    groups = answers.groups("pocket_bbh")
    assert groups is not None
    assert (groups == groups[0]).nonzero()[0].tolist() == [0, 3]
    assert answers.items.query("dataset == 'pocket_bbh'")["question"].nunique() == 19


def _move_cluster(content):
    content["items"]["cluster"][3] = "elsewhere"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_duplicate, "raw, seed 42, dataset pocket_bbh: 1 items are there twice: pocket_bbh-0000"),
        (_move_cluster, "disagree on the cluster of pocket_bbh-0003"),
        (_repeat, "disagree on the question of pocket_bbh-0003"),
        (lambda s: s.update(n=19), "n is 19"),
        (lambda s: s["items"]["correct"].__setitem__(2, 1.5), "0..1.*pocket_bbh-0002"),
        (lambda s: s["items"]["correct"].__setitem__(2, float("nan")), "0..1.*pocket_bbh-0002"),
        (lambda s: s.update(status="partial"), "'partial' is not one of ok, failed"),
        (lambda s: s.update(arm="rwa"), "arm rwa, seed 42, dataset pocket_bbh is not a run of study 'made'"),
        (lambda s: s.update(seed=7), "seed 7"),
        (lambda s: s.update(study="other"), "study 'other'"),
        (lambda s: s.update(dataset="pocket_gsm8k"), "dataset pocket_gsm8k is there twice"),
        (lambda s: s.pop("items"), "not a scores file: items missing"),
    ],
)
def test_contradictions_are_refused_by_name(scores, change, message):
    edit(at(scores, "raw", 42, "pocket_bbh"), change)
    with pytest.raises(ScoresError, match=message):
        read(scores)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_drop_last, "different items: lacks 1 (pocket_bbh-0019)"),
        (_rename_last, "different items: lacks 1 (pocket_bbh-0019), has 1 that others lack (another-item)"),
    ],
)
def test_a_run_with_other_items_is_named_and_excluded(scores, change, reason):
    edit(at(scores, "raw", 42, "pocket_bbh"), change)
    answers = read(scores)
    assert answers.reasons == {("raw", 42, "pocket_bbh"): reason}
    assert answers.missing("raw", MACRO) == f"pocket_bbh, seed 42: {reason}"
    assert answers.missing("sft", MACRO) is None
    assert answers.matrix("sft", "pocket_bbh").shape == (2, 20)
    assert "raw" not in set(answers.items.query("dataset == 'pocket_bbh'")["arm"])


def test_when_no_item_set_leads_the_dataset_is_missing_for_all(scores):
    paths = [path for path in scores if path.parts[-3:-1] != ("sft", "seed43")]
    edit(at(paths, "raw", 42, "pocket_bbh"), _rename_last)
    answers = read(paths)
    assert "pocket_bbh" not in set(answers.items["dataset"])
    assert all("different items" in answers.reasons[arm, 42, "pocket_bbh"] for arm in ("raw", "sft"))
