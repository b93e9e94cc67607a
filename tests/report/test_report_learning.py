"""Training, routing, alignment and cost figures against brute-force readings of the logs and cards."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from mtkv.report.figures.alignment import tokens
from mtkv.report.figures.cost import arm_costs, cost_figures
from mtkv.report.figures.routing import by_dataset, by_layer, entropy
from mtkv.report.figures.training import by_line, curves, gap, gaps, kv_and_accuracy, last_kv, thin

RNG = np.random.default_rng(3)


def log(root, arm, seed):
    return pd.read_parquet(root / f"arms/{arm}/seed{seed}/training.parquet")


def test_gaps_are_validation_minus_the_last_training_value(full_tree):
    rows = []
    for arm, seed in (("a", 1), ("a", 2), ("b", 1)):
        steps = sorted(RNG.choice(range(1, 60), 12, replace=False))
        rows += [
            {"arm": arm, "seed": seed, "step": s, "split": "train", "term": "ce", "value": float(RNG.normal())}
            for s in steps
        ]
        rows += [
            {"arm": arm, "seed": seed, "step": s, "split": "val", "term": "ce", "value": float(RNG.normal())}
            for s in (5, 20, 40)
        ]
        rows += [{"arm": arm, "seed": seed, "step": 20, "split": "val", "term": "only_val", "value": 1.0}]
    frame = pd.DataFrame(rows).sample(frac=1, random_state=0)
    expected = {}
    for r in rows:
        before = [
            t
            for t in rows
            if t["split"] == "train" and all(t[k] == r[k] for k in ("arm", "seed", "term")) and t["step"] <= r["step"]
        ]
        if r["split"] == "val" and before:
            expected[r["arm"], r["seed"], r["step"]] = r["value"] - max(before, key=lambda t: t["step"])["value"]
    found = {(r["arm"], r["seed"], r["step"]): r["value"] for r in gaps(frame).to_dict("records")}
    assert found == pytest.approx(expected)


def test_gap_lines_are_means_over_seeds(full, full_tree):
    trace = next(t for t in gap(full).traces if t["meta"]["view"] == "key" and t["meta"]["arm"] == "fixed")
    values = []
    for seed in (42, 43, 44):
        frame = log(full_tree, "fixed", seed).query("term == 'key'").set_index(["split", "step"])["value"]
        values.append([frame["val", step] - frame["train", step] for step in (100, 200, 300)])
    assert trace["x"] == [100, 200, 300]
    np.testing.assert_allclose(trace["y"], np.mean(values, axis=0), rtol=1e-3)


def test_kv_loss_and_accuracy_are_of_the_same_run(full, full_tree):
    figure = kv_and_accuracy(full)
    items = pd.read_parquet(full_tree / "compare/items.parquet")
    for trace in figure.traces:
        view, arm = trace["meta"]["view"], trace["meta"]["arm"]
        for seed, x, y in zip(trace["meta"]["points"]["seed"], trace["x"], trace["y"], strict=True):
            frame = log(full_tree, arm, seed).query("split == 'val' and step == 300").set_index("term")["value"]
            assert x == pytest.approx(frame["key"] + frame["value"], rel=1e-4)
            part = items[(items["arm"] == arm) & (items["seed"] == seed)].groupby("dataset")["correct"].mean()
            assert y == pytest.approx(100 * (part.mean() if view == "macro" else part[view]))
    assert not any(t["meta"]["arm"] == "similarity" and t["meta"]["view"] == "macro" for t in figure.traces)
    assert {t["meta"]["arm"] for t in figure.traces} == set(full.kv)


def test_without_validation_the_training_loss_counts():
    rows = [("a", 1, 10, "train", "key", 2.0), ("a", 1, 10, "train", "value", 1.0), ("a", 1, 20, "train", "key", 0.5)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "step", "split", "term", "value"])
    assert last_kv(frame) == {("a", 1): 0.5}


def test_entropy_is_a_share_of_equal_weights(full):
    figure = entropy(full)
    arms = {trace["meta"]["arm"]: trace for trace in figure.traces}
    assert "single" not in arms  # one teacher has nothing to mix
    assert set(arms) == {arm for arm, part in full.kv.items() if len(part["teachers"]) > 1}
    assert arms["learnable"]["y"][0] == pytest.approx(0.6 / math.log(2), rel=1e-3)
    assert arms["learnable"]["meta"]["by_seed"]["seeds"]["42"][0] == pytest.approx(0.6 / math.log(2), rel=1e-3)


def test_layer_by_teacher_and_dataset_by_teacher(full):
    figure = by_layer(full)
    assert [view for view, _ in figure.views] == ["per_layer"]
    trace = figure.traces[0]
    assert (trace["y"], trace["x"]) == (["gpt2", "qwen2"], ["layer 0", "layer 1", "layer 2"])
    np.testing.assert_allclose(trace["z"], [[0.75, 0.5, 0.25], [0.25, 0.5, 0.75]])
    lines = dict(zip(by_dataset(full).traces[0]["y"], by_dataset(full).traces[0]["z"], strict=True))
    np.testing.assert_allclose(lines["per_layer · qwen2"], [0.5] * 7)  # the mean over layers


def test_alignment_of_a_row(full):
    figure = tokens(full)
    trace = figure.traces[0]
    assert trace["y"] == ["0 1", "1 2⏎", "2 +"]
    assert trace["x"] == ["0 12", "1 +", "2 +"]  # numbers keep equal tokens apart
    assert trace["z"] == [[None, None, None], [1.0, None, None], [0.25, 0.75, None]]
    assert [row[3] for row in figure.rows[:3]] == ["none", "0 12 (1.00)", "0 12 (0.25); 1 + (0.75)"]
    assert [view for view, _ in figure.views] == ["gpt2", "qwen2"]
    assert tokens(dataclasses.replace(full, examples={})) is None


def test_long_logs_are_thinned_together(monkeypatch):
    monkeypatch.setattr("mtkv.report.figures.training.MAX_NUMBERS", 400)
    steps = pd.DataFrame({"step": range(1000), "value": 1.0, "split": "train"})
    frame = pd.concat([steps.assign(arm=arm, seed=seed, term="ce") for arm in "ab" for seed in range(4)])
    lines = by_line(frame)
    assert set(lines) == {("a", "ce", "train"), ("b", "ce", "train")}
    for part in lines.values():
        assert part.index[0] == 0
        assert part.index[-1] == 999
        assert part.shape == (51, 4)
    assert thin(0, 10) == []
    assert thin(1, 10) == [0]


def test_resumed_runs_are_marked(full):
    cards = dict(full.cards)
    key = "arms/fixed/seed43"
    cards[key] = {**cards[key], "result": {**cards[key]["result"], "resumed_at": [150]}}
    figure = curves(dataclasses.replace(full, cards=cards))
    found = [t for t in figure.traces if "resumed" in t["name"]]
    assert {t["meta"]["arm"] for t in found} == {"fixed"}
    assert all(t["x"] == [150] and t["meta"]["points"] == {"seed": [43]} for t in found)
    line = next(t for t in figure.traces if t["name"] == "fixed · train" and t["meta"]["view"] == "ce")
    mark = next(t for t in found if t["meta"]["view"] == "ce" and t["y"][0] == line["y"][line["x"].index(150)])
    assert mark["marker"]["symbol"] == "x"
    assert not any("resumed" in t["name"] for t in curves(full).traces)


def test_costs_come_from_the_cards(full):
    cards = dict(full.cards)
    for seed, hours in ((42, 1.0), (43, 2.0), (44, 6.0)):
        key = f"arms/fixed/seed{seed}"
        cards[key] = {
            **cards[key],
            "wall_seconds": 3600 * hours,
            "hardware": {"gpu": "H200"},
            "peak_gpu_memory_mb": 5000.0,
        }
    costs = arm_costs(dataclasses.replace(full, cards=cards))
    assert list(costs["fixed"]["GPU-hours"].values()) == [1.0, 2.0, 6.0]
    assert list(costs["sft"]["GPU-hours"].values()) == [0.0] * 3
    assert costs["fixed"]["Peak memory (MB)"][42] == 5000.0
    assert costs["sft"]["Peak memory (MB)"][42] == 700.0
    assert costs["fixed"]["Tokens per second"][42] == pytest.approx(900_000 / 3600)
    assert [costs[arm]["Stored KV (MB)"][42] for arm in ("sft", "single", "fixed")] == [0.0, 12.0, 24.0]
    figure = cost_figures(dataclasses.replace(full, cards=cards))[0]
    assert "GPU-hours of all training runs: 9.00." in figure.caption
    row = dict(zip(figure.header, next(r for r in figure.rows if r[0] == "fixed"), strict=True))
    assert (row["GPU-hours"], row["Stored KV (MB)"]) == ("3.000", "24.0")
    assert len(figure.traces) == 5
    plain = cost_figures(full)[0]
    assert [trace["name"] for trace in plain.traces] == [name for name in plain.header[1:] if name != "GPU-hours"]
    assert "No run used a GPU." in plain.caption


def test_mapped_targets_count_instead_of_the_store(full):
    name = full.kv["single"]["aligns"][0]
    cards = {**full.cards, f"maps/{name}.targets": {"result": {"bytes": 3_000_000}}}
    costs = arm_costs(dataclasses.replace(full, cards=cards))
    assert costs["single"]["Stored KV (MB)"][42] == 3.0
    assert costs["fixed"]["Stored KV (MB)"][42] == 15.0
