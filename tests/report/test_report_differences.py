"""Differences, ablations, the matrix of arms and the runs that are there, against the parquet files they are drawn from."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

from mtkv.report.figures.ablations import ablation_figures, families
from mtkv.report.figures.figure import clear, outcome, verdict
from mtkv.report.figures.pairs import forest
from mtkv.report.figures.scores import duels, heatmap, runs
from mtkv.report.figures.where import where_figures
from mtkv.report.page import write_tables
from mtkv.report.results import changes, kv_part
from mtkv.report.summary import results_json


def pairs_of(root):
    return pd.read_parquet(root / "compare/pairs.parquet").set_index(["arm", "baseline", "dataset"])


def marks(figure, view):
    return next((t for t in figure.traces if t["meta"]["view"] == view and t["mode"] == "markers"), None)


@pytest.mark.parametrize(
    ("pair", "word", "said"),
    [
        (None, "missing", "missing"),
        ({"delta": float("nan"), "p_holm": 0.01}, "missing", "missing"),
        ({"delta": 0.03, "low": 0.01, "high": 0.05, "p_holm": 0.01, "mdd": 0.02}, "better", "better"),
        ({"delta": -0.03, "low": -0.05, "high": -0.01, "p_holm": 0.01, "mdd": 0.02}, "worse", "worse"),
        ({"delta": 0.03, "low": 0.01, "high": 0.05, "p_holm": 0.2, "mdd": 0.034}, "undecided", "undecided, sees ≥ 3.4"),
        ({"delta": 0.03, "low": -0.01, "high": 0.05, "p_holm": 0.01, "mdd": None}, "undecided", "undecided"),
        (
            {"delta": 0.0, "low": 0.0, "high": 0.0, "p_holm": 1.0, "mdd": 0.01, "outcome": "equivalent"},
            "equivalent",
            "equivalent",
        ),
    ],
)
def test_words_of_a_difference(pair, word, said):
    assert outcome(pair, 0.05) == word
    assert verdict(pair, 0.05) == said
    assert clear(pair, 0.05) == (word in ("better", "worse"))


def test_forest_says_what_an_unclear_difference_could_have_been(full, full_tree):
    pairs = pairs_of(full_tree)
    figure = forest(full)
    undecided = 0
    for view, _ in figure.views:
        points = marks(figure, view)
        beside = next(t for t in figure.traces if t["meta"]["view"] == view and t["mode"] == "text")
        arms = points["meta"]["points"]["arm"]
        known = pairs.xs((full.baseline, view), level=["baseline", "dataset"])
        assert set(arms) == set(known.index[known["delta"].notna()])
        for i, arm in enumerate(arms):
            row = known.loc[arm]
            assert points["x"][i] == pytest.approx(row["delta"] * 100)
            assert points["x"][i] + points["error_x"]["array"][i] == pytest.approx(row["high"] * 100)
            assert (points["marker"]["color"][i] == "#ffffff") == (row["outcome"] not in ("better", "worse"))
            if row["outcome"] == "undecided":
                undecided += 1
                assert f"sees ≥ {row['mdd'] * 100:.1f}" in beside["text"][i].replace("&gt;", ">")
    assert undecided > 10
    for row in figure.rows:
        assert row[-1] == f"{pairs.loc[(row[1], row[2], row[0]), 'mdd'] * 100:.1f}"


def test_heatmap_has_the_smallest_detectable_differences(full, full_tree):
    pairs = pairs_of(full_tree)
    trace = next(t for t in heatmap(full).traces if t["meta"]["view"] == "mdd")
    for (i, arm), (j, name) in itertools.product(enumerate(full.arms), enumerate(full.columns)):
        expected = pairs["mdd"].get((arm, full.baseline, name), np.nan) * 100
        assert (trace["z"][i][j] is None) == bool(np.isnan(expected))
        if trace["z"][i][j] is not None:
            assert trace["z"][i][j] == pytest.approx(expected)


def test_matrix_counts_and_cells_are_those_of_the_file(full, full_tree):
    table = pd.read_parquet(full_tree / "compare/matrix.parquet")
    figure = duels(full)
    for trace in figure.traces:
        part = table[table["dataset"] == trace["meta"]["view"]].set_index(["arm", "other"])
        for (i, arm), (j, other) in itertools.product(enumerate(full.arms), enumerate(full.arms)):
            if (arm, other) in part.index:
                row = part.loc[(arm, other)]
                assert trace["z"][i][j] == pytest.approx(row["delta"] * 100)
                assert trace["text"][i][j].split()[0] == row["outcome"]
            else:
                assert trace["z"][i][j] is None
                assert trace["text"][i][j] == ""
    counts = table.groupby(["dataset", "arm"])["outcome"].value_counts().to_dict()
    for name, arm, *numbers in figure.rows:
        assert [int(n) for n in numbers] == [counts.get((name, arm, word), 0) for word in ("win", "tie", "loss")]


def test_of_many_arms_only_those_that_are_named_are_drawn_and_all_are_in_the_file(
    full, full_tree, tmp_path, monkeypatch
):
    whole = duels(full)
    monkeypatch.setattr("mtkv.report.results.MATRIX_ARMS", len(full.arms) - 1)
    claims = full.claims.to_dict("records")
    against = full.pairs[full.pairs["family"].isin(["claim", "twin"])]
    named = {full.baseline, *(claim[key] for claim in claims for key in ("arm", "baseline")), *against["baseline"]}
    named &= set(full.arms)
    assert named < set(full.arms)
    figure = duels(full)
    assert set(figure.traces[0]["y"]) == set(figure.traces[0]["meta"]["columns"]["arm"]) == named
    assert f"{len(full.arms) - len(named)} arms that no claim names are not drawn" in figure.caption
    assert figure.rows == whole.rows
    shown = results_json(full)["matrix"]
    assert {row["arm"] for row in shown} == {row["other"] for row in shown} == named
    table = pd.read_parquet(full_tree / "compare/matrix.parquet")
    write_tables(full, [], None, tmp_path / "tables")
    file = pd.read_csv(tmp_path / "tables/matrix.csv")
    assert len(file) == len(table) > len(shown)
    assert file[["arm", "other", "dataset", "outcome"]].equals(
        table[["arm", "other", "dataset", "outcome"]].astype(str)
    )
    assert np.allclose(file[["delta", "low", "high"]], table[["delta", "low", "high"]] * 100, atol=0.0051)
    assert np.allclose(file[["p", "p (Holm)"]], table[["p", "p_holm"]], atol=0.000051)
    assert "-0.00," not in (tmp_path / "tables/matrix.csv").read_text()
    assert len((tmp_path / "tables/matrix.md").read_text().splitlines()) == 2 + len(shown)


def test_a_study_without_matrix_has_no_matrix(full):
    from mtkv.report.figures.scores import matrix_figures

    old = dataclasses.replace(full, matrix=pd.DataFrame())
    assert [figure.id for figure in matrix_figures(old)] == ["runs"]


def test_runs_that_are_missing_or_partial_are_named(full, full_study):
    figure = runs(full)
    trace = figure.traces[0]
    cells = {
        (arm, name): trace["text"][i][j] for i, arm in enumerate(full.arms) for j, name in enumerate(full.datasets)
    }
    assert cells["fixed_shuffled", "pocket_gpqa"] == "2/3"
    assert cells["similarity", "pocket_bbh"] == "0/3"
    assert cells["raw", "pocket_bbh"] == "1/1"
    odd = {key for key, text in cells.items() if len(set(text.split("/"))) > 1}
    assert odd == {("fixed_shuffled", "pocket_gpqa"), ("similarity", "pocket_bbh")}
    row = next(row for row in figure.rows if row[:2] == ["fixed_shuffled", "pocket_gpqa"])
    assert row[2:] == ["42, 44", "43", "60", "seed 43: failed: <out of memory>"]
    assert "Partial cells: 1; empty ones: 1." in figure.caption


def flat(value, path=()):
    """Independent flattening: every path to a value that is no mapping."""
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, inner in value.items() for key, leaf in flat(inner, (*path, name)).items()}


def test_changes_are_the_settings_that_differ(full_study):
    found = changes(full_study)
    assert set(found) == {name for name, arm in full_study.arms.items() if arm.extends}
    for name in ("keys", "first", "layers_0_1", "cropped", "per_layer", "fixed_shuffled"):
        arm, parent = (flat(full_study.arms[n].model_dump(mode="json")) for n in (name, full_study.arms[name].extends))
        differing = {".".join(path) for path in arm if arm[path] != parent[path]} - {"description", "extends", "seeds"}
        assert {text.split(":")[0] for text in found[name]} == differing != set()
    assert found["keys"] == ["kv.loss.lambda_v: 1 → 0"]
    assert found["layers_0_1"] == ["kv.loss.layers: all → 0, 1"]
    assert found["single"] == ["with kv"]


def test_kv_part(full_study):
    parts = {name: kv_part(arm) for name, arm in full_study.arms.items() if arm.kv}
    assert (parts["first_keys"]["layers"], parts["first_keys"]["kinds"]) == ("first", "K")
    assert (parts["values"]["layers"], parts["values"]["kinds"]) == ("all", "V")
    assert parts["layers_0_1"]["layers"] == "0–1"
    assert parts["fixed_shuffled"]["control"] == "shuffle_items"
    assert parts["fixed"]["aligns"] == [f"{t}/{full_study.aligns(t)[0].slug}" for t in ("qwen2", "gpt2")]


def test_every_arm_that_extends_another_is_shown_against_it(full, full_tree, full_study):
    pairs = pairs_of(full_tree)
    figure = ablation_figures(full)[0]
    points = marks(figure, "macro")
    parents = {name: arm.extends for name, arm in full_study.arms.items() if arm.extends}
    without = {"similarity", "fixed_shuffled"}  # a cell of theirs is missing
    assert set(points["meta"]["points"]["arm"]) == set(parents) - without
    for arm, shown, x in zip(points["meta"]["points"]["arm"], points["y"], points["x"], strict=True):
        assert shown == f"{arm} − {parents[arm]}"
        assert x == pytest.approx(pairs.loc[(arm, parents[arm], "macro"), "delta"] * 100)
    changed = {row[1]: row[-1] for row in figure.rows}
    assert changed["cropped"].startswith("kv.select.method: full → keep_last")
    assert "fixed_shuffled" in figure.caption
    seeds = points["meta"]["by_seed"]["seeds"]["43"]
    i = points["meta"]["points"]["arm"].index("keys")
    scores = full.seed_scores.set_index(["arm", "dataset", "seed"])["accuracy"]
    assert seeds[i] == pytest.approx(100 * (scores["keys", "macro", 43] - scores["fixed", "macro", 43]))


def test_layers_and_kinds_hold_the_macro_differences_of_their_arms(full, full_tree):
    assert families(full) == {
        "fixed": {
            ("all", "K + V"): "fixed",
            ("all", "K"): "keys",
            ("all", "V"): "values",
            ("first", "K + V"): "first",
            ("first", "K"): "first_keys",
            ("0–1", "K + V"): "layers_0_1",
        }
    }
    trace = ablation_figures(full)[1].traces[0]
    assert (trace["x"], trace["y"]) == (["K", "V", "K + V"], ["all", "first", "0–1"])
    macro = pairs_of(full_tree).xs((full.baseline, "macro"), level=["baseline", "dataset"])["delta"] * 100
    expected = [
        [macro["keys"], macro["values"], macro["fixed"]],
        [macro["first_keys"], np.nan, macro["first"]],
        [np.nan, np.nan, macro["layers_0_1"]],
    ]
    drawn = np.array([[np.nan if v is None else v for v in row] for row in trace["z"]])
    np.testing.assert_allclose(drawn, expected)
    assert trace["zmin"] == -trace["zmax"]


def test_a_study_without_such_arms_has_no_such_heatmap(tree, study):
    from mtkv.report.results import read_results

    assert [figure.id for figure in ablation_figures(read_results(study, tree))] == ["ablations"]


def test_where_kv_helps_has_the_gain_over_no_kv_and_over_the_twin(full, full_tree):
    asked = [("fixed", "sft"), ("fixed", "fixed_shuffled")]  # no other arm with KV has a twin
    pairs = full.pairs
    twin = pairs.query("arm == 'fixed_shuffled' and baseline == 'fixed'")
    turned = twin.assign(
        arm="fixed", baseline="fixed_shuffled", delta=-twin["delta"], low=-twin["high"], high=-twin["low"]
    )
    results = dataclasses.replace(full, pairs=pd.concat([pairs, turned], ignore_index=True))
    (figure,) = where_figures(results)
    known = results.pairs.set_index(["arm", "baseline", "dataset"])
    for view in ("pocket_bbh", "pocket_gsm8k"):  # one run of the twin failed, so it has no macro average
        points = marks(figure, view)
        rows = [known.loc[(*pair, view)] for pair in asked]
        assert points["y"] == ["fixed − sft", "fixed − fixed_shuffled"]
        assert points["x"] == pytest.approx([100 * row["delta"] for row in rows])
        assert points["error_x"]["arrayminus"] == pytest.approx([100 * (row["delta"] - row["low"]) for row in rows])
    said = {row[2]: row[-2:] for row in figure.rows}
    assert said == {"sft": ["foreign teachers", "no KV"], "fixed_shuffled": ["foreign teachers", "its control twin"]}
    left = [arm for arm in full.kv if arm not in ("fixed", "fixed_shuffled")]
    assert f"Without a twin, and so not here: {', '.join(left)}." in figure.caption
    assert where_figures(dataclasses.replace(full, transfers=[])) == []
