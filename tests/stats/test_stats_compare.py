"""The stage as a whole: four files, one row per thing, the same whatever the order, quick, and without torch."""

import json
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mtkv.provenance.files import write_json
from mtkv.stages.compare import compare, contenders
from mtkv.stats import ranks
from mtkv.stats.bootstrap import Resamples
from mtkv.stats.compute_parity import UnfairComparison

SEEDS = {"raw": 1, "sft": 3, "kv": 3, "twin": 3, "teacher": 1}
ACCURACY = {"raw": 0.25, "sft": 0.5, "kv": 0.5, "twin": 0.5, "teacher": 0.9}
CLAIMS = {
    "beats": {"statement": "KV beats text.", "kind": "difference", "arm": "kv", "baseline": "sft", "twin": "twin", "level": "minimum"},
    "five": {"statement": "Five improve.", "kind": "datasets_improved", "arm": "kv", "baseline": "sft", "at_least": 5, "level": "ideal"},
    "gsm": {"statement": "Accurate.", "kind": "accuracy", "arm": "kv", "dataset": "pocket_gsm8k", "threshold": 95, "level": "stretch"},
    "reach": {"statement": "Reaches.", "kind": "reaches", "arm": "kv", "baselines": ["teacher"]},
}  # fmt: skip
ARMS = {
    "raw": {"seeds": [42]},
    "sft": {"training": {"steps": 10}},
    "kv": {"extends": "sft", "kv": {"teachers": ["qwen2"]}},
    "twin": {"extends": "kv", "kv": {"control": "shuffle_items"}},
    "teacher": {"model": "qwen2", "seeds": [42]},
}
COLUMNS = {
    "items": "arm seed dataset item cluster question correct",
    "cells": "arm dataset mean low high n_items n_seeds sd_seeds status reason tied "
    "sd_items se interval n_clusters clustered design_effect rank rank_low rank_high reason_parts",
    "pairs": "arm baseline dataset delta low high p p_holm n_items n_seeds sd_seeds sd_items mdd family "
    "se p_items p_tost t_seeds p_seeds cohens_d interval outcome",
    "matrix": "arm other dataset delta low high p p_holm n_items n_seeds outcome",
    "claims": "claim statement kind level arm baseline twin threshold delta low high p p_holm n verdict why "
    "n_seeds mdd twin_delta twin_low twin_high why_parts",
}


@pytest.fixture
def compared(made, tmp_path):
    """`compared(shift, edit)` → (result, tables) of a made study whose arm `kv` is better by `shift`."""

    def run(shift=0.0, edit=lambda paths: paths, items=60, cards=(), folder="compare"):
        accuracies = ACCURACY | {"kv": ACCURACY["kv"] + shift}
        world = made.draw_world(np.random.default_rng(3), accuracies, SEEDS, made.datasets, items, 0.02)
        paths = edit(made.write_scores(tmp_path / "scores", world))
        result = compare(made.make_study(claims=CLAIMS), paths, list(cards), tmp_path / folder)
        return result, {name: pd.read_parquet(tmp_path / folder / f"{name}.parquet") for name in COLUMNS}

    return run


def test_twice_as_many_arms_take_about_twice_the_work_and_memory(made, monkeypatch):
    """Every pair of arms is compared, but the bootstrap is drawn once, and its quantiles are read of many pairs at a time."""
    drawn, calls = [], []
    generator, estimates = np.random.default_rng, ranks.estimates

    def counted(*arguments):
        stream = generator(*arguments)
        return SimpleNamespace(
            multinomial=lambda *sizes, size: drawn.append(size) or stream.multinomial(*sizes, size=size),
            integers=stream.integers,
            permutation=stream.permutation,
        )

    def work(arms):
        accuracies = {f"arm{n:02d}": 0.5 for n in range(arms)}
        world = made.draw_world(generator(3), accuracies, dict.fromkeys(accuracies, 3), made.datasets[:2], 40)
        answers = made.answers_of(world)
        drawn.clear(), calls.clear()
        tracemalloc.start()
        resamples = Resamples(answers, 1000, 0)
        for column in answers.columns:
            ranks.duels(answers, resamples, column, 0.95, list(accuracies))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return sum(drawn), len(calls), peak

    monkeypatch.setattr(np.random, "default_rng", counted)
    monkeypatch.setattr(ranks, "estimates", lambda *given: calls.append(1) or estimates(*given))
    few, many = work(20), work(40)
    assert few[0] == many[0] == 2 * 1000
    assert many[1] < 3 * few[1]
    assert many[2] < 3 * few[2]


def test_tables_have_their_columns_and_one_row_per_thing(compared, made):
    result, tables = compared(0.12)
    for name, columns in COLUMNS.items():
        assert list(tables[name]) == columns.split()
    assert tables["claims"]["claim"].tolist() == list(CLAIMS)
    assert len(tables["cells"]) == len(SEEDS) * 8 == len(tables["cells"].drop_duplicates(["arm", "dataset"]))
    pairs = tables["pairs"].drop_duplicates(["arm", "baseline"])
    assert {(row.arm, row.baseline): row.family for row in pairs.itertuples()} == {
        **{(arm, "sft"): "baseline" for arm in ("raw", "kv", "twin", "teacher")},
        ("twin", "kv"): "extends",
        ("kv", "teacher"): "claim",
        ("kv", "twin"): "twin",
    }
    assert (tables["pairs"].groupby(["arm", "baseline"])["dataset"].nunique() == 8).all()
    assert (tables["pairs"]["p_holm"] >= tables["pairs"]["p"]).all()
    assert len(tables["matrix"]) == 5 * 4 * 8 == len(tables["matrix"].drop_duplicates(["arm", "other", "dataset"]))
    assert len(tables["items"]) == sum(SEEDS.values()) * 7 * 60 == result["items"]
    json.dumps(result, allow_nan=False)


def test_planted_effect_is_found_and_a_null_is_not(compared):
    found, tables = compared(0.25)
    assert tables["claims"].set_index("claim").loc["beats", "verdict"] == "supported"
    assert found["grade"] == "minimum"
    assert sum(found["claims"].values()) == len(CLAIMS)
    null, tables = compared(0.0)
    assert tables["claims"].set_index("claim").loc["beats", "verdict"] != "supported"
    assert null["grade"] == "none"


def test_an_arm_shifted_by_eight_points_is_found_on_identical_models(made, tmp_path):
    """The same answers, with 8 % of all items turned from wrong to right: seeds agree, so 8 points show."""
    rng = np.random.default_rng(5)
    world = made.draw_world(rng, ACCURACY, SEEDS, made.datasets, 200)
    world["twin"] = world["sft"]
    world["kv"] = {dataset: matrix.copy() for dataset, matrix in world["sft"].items()}
    for matrix in world["kv"].values():
        for row in matrix:
            row[rng.choice(np.flatnonzero(row == 0), 16, replace=False)] = 1
    claims = {"by_7": CLAIMS["beats"] | {"threshold": 7}, "by_9": CLAIMS["beats"] | {"threshold": 9}}
    compare(made.make_study(claims=claims), made.write_scores(tmp_path / "s", world), [], tmp_path / "c")
    table = pd.read_parquet(tmp_path / "c/claims.parquet").set_index("claim")
    assert table["verdict"].to_dict() == {"by_7": "supported", "by_9": "refuted"}
    assert table["delta"].tolist() == pytest.approx([8, 8])


def test_numbers_are_those_of_a_plain_pivot(compared):
    _, tables = compared(0.1)
    means = tables["items"].groupby(["arm", "dataset"])["correct"].mean().unstack()
    cells = tables["cells"].pivot(index="arm", columns="dataset", values="mean")
    assert np.allclose(cells[means.columns], means.loc[cells.index], atol=1e-12)
    assert np.allclose(cells["macro"], means.mean(axis=1).loc[cells.index], atol=1e-12)
    for row in tables["pairs"].itertuples():
        expected = cells.loc[row.arm, row.dataset] - cells.loc[row.baseline, row.dataset]
        assert row.delta == pytest.approx(expected, abs=1e-12)
        assert row.low <= row.delta <= row.high


def test_teachers_are_no_rivals_for_the_tied_set(compared):
    _, tables = compared(0.2)
    macro = tables["cells"].query("dataset == 'macro'").set_index("arm")
    assert macro["tied"].to_dict() == {"raw": False, "sft": False, "kv": True, "twin": False, "teacher": False}
    assert macro.loc["teacher", "mean"] > macro.loc["kv", "mean"]


def test_order_of_scores_changes_no_byte(compared, tmp_path):
    def shuffled(paths):
        for path in paths:
            content = json.loads(path.read_text())
            content["items"] = {key: values[::-1] for key, values in content["items"].items()}
            path.write_text(json.dumps(content))
        return paths[::-1]

    compared(0.1, folder="straight")
    compared(0.1, shuffled, folder="shuffled")
    for name in COLUMNS:
        one, two = ((tmp_path / folder / f"{name}.parquet").read_bytes() for folder in ("straight", "shuffled"))
        assert one == two


def test_missing_dataset_makes_the_macro_average_missing_and_is_named(compared):
    def without_one(paths):
        return [path for path in paths if path.parts[-3:] != ("kv", "seed43", "pocket_bbh.json")]

    result, tables = compared(0.1, without_one)
    cells = tables["cells"].set_index(["arm", "dataset"])
    for column in ("pocket_bbh", "macro"):
        assert cells.loc[("kv", column), "status"] == "missing"
        assert cells.loc[("kv", column), "reason"] == "pocket_bbh, seed 43: no scores file"
        assert np.isnan(cells.loc[("kv", column), "mean"])
    assert cells.loc[("kv", "pocket_gsm8k"), "status"] == "ok"
    assert (cells.drop(index="kv", level="arm")["status"] == "ok").all()
    pairs = tables["pairs"].set_index(["arm", "baseline", "dataset"])
    assert pairs.loc[("kv", "sft", "macro"), ["delta", "p", "p_holm"]].isna().all()
    assert np.isfinite(pairs.loc[("twin", "sft", "macro"), "p_holm"])
    assert "pocket_bbh, seed 43" in tables["claims"].set_index("claim").loc["beats", "why"]
    assert result["missing"] == {"kv/seed43/pocket_bbh": "no scores file"}


def test_study_without_any_scores_is_all_missing(compared):
    result, tables = compared(edit=lambda paths: [])
    assert set(tables["cells"]["status"]) == {"missing"}
    assert result["claims"] == {"undecided": len(CLAIMS)}


def test_a_kv_claim_without_a_control_twin_cannot_be_supported(made, tmp_path):
    world = made.draw_world(np.random.default_rng(3), ACCURACY | {"kv": 0.75}, SEEDS, made.datasets, 60, 0.02)
    beats = {key: value for key, value in CLAIMS["beats"].items() if key != "twin"}
    claims = {"none": beats, "no_control": beats | {"twin": "sft2"}, "text": beats | {"arm": "sft", "baseline": "raw"}}
    study = made.make_study(claims=claims, arms=ARMS | {"sft2": {"extends": "kv"}})
    world["sft2"] = world["twin"]
    compare(study, made.write_scores(tmp_path / "s", world), [], tmp_path / "c")
    table = pd.read_parquet(tmp_path / "c/claims.parquet").set_index("claim")
    assert table["verdict"].to_dict() == {"none": "undecided", "no_control": "undecided", "text": "supported"}
    assert "no control twin is named" in table.loc["none", "why"]
    assert "its twin sft2 is no control arm" in table.loc["no_control", "why"]
    assert json.loads((tmp_path / "c/study.json").read_text())["claims"]["none"]["arm"] == "kv"


def test_matrix_agrees_with_the_pairs_and_is_antisymmetric(compared):
    _, tables = compared(0.2)
    matrix = tables["matrix"].set_index(["arm", "other", "dataset"])
    for row in tables["pairs"].itertuples():
        one, back = (matrix.loc[(*names, row.dataset)] for names in ((row.arm, row.baseline), (row.baseline, row.arm)))
        assert (one.delta, back.delta) == pytest.approx((row.delta, -row.delta), abs=1e-12)
        assert one[["low", "high"]].tolist() == pytest.approx([-back.high, -back.low], abs=1e-12)
        assert {one.outcome, back.outcome} in ({"win", "loss"}, {"tie"})


def test_unfair_training_stops_the_stage(compared, tmp_path):
    cards = []
    for arm, steps in (("sft", 300), ("kv", 306)):
        cards.append(tmp_path / f"{arm}.json")
        facts = {"steps": steps, "tokens": 9, "rows_seen": 9, "batch_size": 8, "ce_weight": 1.0}
        write_json(cards[-1], {"wildcards": {"arm": arm, "seed": "42"}, "result": facts})
    with pytest.raises(UnfairComparison, match="steps: sft/seed42 has 300, kv/seed42 has 306"):
        compared(cards=cards)
    assert not (tmp_path / "compare").exists()


RUN = {"source": "run", "arm": "expert", "seed": 42}
WITH_EXPERT = ARMS | {"expert": {"training": {"steps": 99}}, "taught": {"extends": "kv", "kv": {"teachers": ["own"]}}}


@pytest.mark.parametrize(
    ("claim", "teaches", "held"),
    [
        (None, True, False),
        ({"kind": "reaches", "arm": "taught", "baselines": ["expert"]}, True, False),
        ({"kind": "difference", "arm": "taught", "baseline": "expert"}, True, True),
        ({"kind": "difference", "arm": "expert", "baseline": "raw"}, True, True),
        ({"kind": "recovers", "arm": "taught", "baseline": "sft", "reference": "expert"}, True, True),
        ({"kind": "differ", "arm": "taught", "baselines": ["sft", "expert"]}, True, True),
        (None, False, True),
    ],
)
def test_an_expert_of_more_steps_is_held_to_the_others_where_a_claim_compares_it(made, tmp_path, claim, teaches, held):
    models = {"qwen2": {"name": "qwen2"}, "own": RUN if teaches else {"name": "gpt2"}}
    claims = {"made": claim | {"statement": "Said."}} if claim else {}
    study = made.make_study(arms=WITH_EXPERT, teachers={"models": models}, claims=claims)
    cards = [tmp_path / f"{arm}.json" for arm in ("sft", "taught", "expert")]
    for path in cards:
        facts = {
            "steps": 99 if path.stem == "expert" else 10,
            "tokens": 9,
            "rows_seen": 9,
            "batch_size": 8,
            "ce_weight": 1.0,
        }
        write_json(path, {"wildcards": {"arm": path.stem, "seed": "42"}, "result": facts})
    assert ("expert" in contenders(study)) == held
    if held:
        with pytest.raises(UnfairComparison, match="steps: sft/seed42 has 10, expert/seed42 has 99"):
            compare(study, [], cards, tmp_path / "c")
    else:
        assert compare(study, [], cards, tmp_path / "c")["compute"]["steps"] == [10, 10]


def test_statistics_need_no_torch():
    code = (
        "import sys, mtkv.stages.compare; print([m for m in ('torch', 'transformers', 'lm_eval') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_reasons_are_stored_with_their_parts(compared):
    _, tables = compared(0.12)

    def filled(parts):
        return (
            parts
            if isinstance(parts, str)
            else parts["template"].format(**{k: filled(v) for k, v in parts["facts"].items()})
        )

    claims = tables["claims"]
    assert len(claims)
    for row in claims.to_dict("records"):
        assert json.loads(row["why_parts"])["template"] != row["why"]
        assert filled(json.loads(row["why_parts"])) == row["why"]
    cells = tables["cells"]
    assert (cells["reason"].isna() == cells["reason_parts"].isna()).all()
    for row in cells.dropna(subset="reason").to_dict("records"):
        assert filled(json.loads(row["reason_parts"])) == row["reason"]
