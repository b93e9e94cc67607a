"""The gate beside the gain: cards of `mtkv gate` against the table of pairs; one that is broken takes nothing down."""

import json
import math
import shutil

import numpy as np
import pytest

from mtkv.report.figures.where import gate_figures
from mtkv.report.results import read_results
from mtkv.report.static_figures import picture
from mtkv.stages.report import phrases, render

GATES = {"fixed": (0.05, 0.01), "learnable": (-0.004, 0.007), "sft": (0.1, 0.1)}  # arm: difference, error


def card(difference, error, batches=20):
    row = {"difference": difference, "difference_se": error, "right": 0.1, "ratio": 2.0}
    layers = [{"layer": 0, "kind": "key"} | row | {"difference": 9}, {"layer": -1, "kind": "both"} | row]
    return {"result": {"batches": batches, "cosines": layers}}


def write(root, arm, text, folder="steps100-batches20"):
    path = root / "gate" / arm / folder / "card.json"
    path.parent.mkdir(parents=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")


@pytest.fixture
def gated(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / tree.name)
    for arm, (difference, error) in GATES.items():
        write(root, arm, card(difference, error))
    return root


def test_each_arm_lies_at_its_cosine_and_its_gain(study, gated):
    write(gated, "fixed", card(0.9, 0.9, batches=2), "steps900-batches2")  # the one of more batches counts
    results = read_results(study, gated)
    (figure,) = gate_figures(results)
    (trace,) = figure.traces
    assert trace["text"] == ["fixed", "learnable"]  # sft has no KV, similarity no gate
    assert trace["x"] == [0.05, -0.004]
    assert trace["error_x"]["array"] == trace["error_x"]["arrayminus"] == [0.01, 0.007]
    pairs = results.pairs.query("dataset == 'macro' and baseline == 'sft'").set_index("arm").loc[["fixed", "learnable"]]
    np.testing.assert_allclose(trace["y"], 100 * pairs["delta"])
    np.testing.assert_allclose(np.add(trace["y"], trace["error_y"]["array"]), 100 * pairs["high"])
    np.testing.assert_allclose(np.subtract(trace["y"], trace["error_y"]["arrayminus"]), 100 * pairs["low"])
    assert figure.caption.endswith(" Within two errors of 0: learnable.")
    assert [row[0] for row in figure.rows] == ["fixed", "learnable"]
    drawn = picture(figure).svg
    assert ">fixed</text>" in drawn
    assert drawn.count("LineCollection") == 4  # whiskers across and up, of two arms
    said = phrases([figure])
    axes = [figure.layout[axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
    for text in (figure.title, figure.caption, trace["hovertemplate"], *figure.header, *axes):
        assert said[text] != text


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        '{"result": {}}',
        {"result": {"batches": 20, "cosines": []}},
        {"result": {"batches": 20, "cosines": 3}},
        card(math.nan, 0.1),
        card("", 0.1),
        card(None, 0.1),
        card(0.1, math.nan),
    ],
)
def test_a_gate_that_cannot_be_read_is_named_and_takes_nothing_down(study, gated, broken):
    write(gated, "similarity", broken)
    results = read_results(study, gated)
    assert "gate/similarity/steps100-batches20/card.json" in results.absent
    assert [figure.traces[0]["text"] for figure in gate_figures(results)] == [["fixed", "learnable"]]


def test_a_folder_in_the_cards_place_is_named_too(study, gated, tmp_path):
    (gated / "gate/similarity/steps1-batches1/card.json").mkdir(parents=True)
    render(study, gated, tmp_path / "out" / "index.html")
    assert (tmp_path / "out/figures/gate.svg").is_file()
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert "gate/similarity/steps1-batches1/card.json" in page
    assert "figure-gate" in page


def test_without_gates_there_is_no_such_figure(study, tree):
    assert gate_figures(read_results(study, tree)) == []
