"""The pictures of one alignment: what is drawn, every notation of a layer map, and no torch behind it."""

import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest

from mtkv.report import visualize_alignment, visualize_layer_mapping


class Tensor:
    """Looks like a tensor with a gradient on another device: numpy can read it only after `detach().cpu()`."""

    def __init__(self, values, ready=False):
        self.values, self.ready = np.array(values), ready

    def detach(self):
        return self

    def cpu(self):
        return Tensor(self.values, ready=True)

    def __array__(self, dtype=None, copy=None):
        assert self.ready
        return self.values


WEIGHTS = [[1.0, 0, 0], [0, 0.25, 0.75]]


@pytest.mark.parametrize(
    "layer_map", [WEIGHTS, np.array(WEIGHTS), Tensor(WEIGHTS), {0: [(0, 1.0)], 1: [(1, 0.25), (2, 0.75)]}]
)
def test_every_notation_of_a_layer_map_draws_the_same(layer_map):
    figure = visualize_layer_mapping(layer_map, num_teacher_layers=3, num_student_layers=2)
    assert isinstance(figure, go.Figure)
    np.testing.assert_allclose(figure.data[0].z, WEIGHTS)
    assert figure.layout.xaxis.title.text == "teacher layer"
    assert figure.layout.yaxis.autorange == "reversed"
    assert list(figure.layout.yaxis.ticktext) == ["0", "1"]


def test_one_layer_each():
    figure = visualize_layer_mapping([0, 2], num_teacher_layers=3, num_student_layers=2)
    np.testing.assert_allclose(figure.data[0].z, [[1, 0, 0], [0, 0, 1]])


def test_equal_tokens_keep_their_own_rows_and_columns():
    matrix = np.eye(3)
    figure = visualize_alignment(Tensor(matrix), ["a", "b", "a"], ["a", "b", "a"])
    (trace,) = figure.data
    np.testing.assert_allclose(trace.z, matrix)
    assert list(trace.x) == list(trace.y) == [0, 1, 2]
    assert list(figure.layout.xaxis.ticktext) == ["a", "b", "a"]
    assert trace.text[0][1] == "a ← b"
    assert figure.to_json()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 2\), but there are 3 student and 2 teacher"):
        visualize_alignment(np.eye(2), ["a", "b", "c"], ["a", "b"])
    for layer_map in ([0], np.ones((3, 2)), [{0: [(0, 1.0)]}, {0: [(0, 1.0)]}]):
        with pytest.raises(ValueError, match="expected one teacher's map"):
            visualize_layer_mapping(layer_map, 3, 2)
    for layer_map in ([0, 3], [0, -1], {2: [(0, 1.0)]}):
        with pytest.raises(ValueError, match="outside"):
            visualize_layer_mapping(layer_map, 3, 2)


def test_no_torch_is_loaded():
    code = (
        "import sys; from mtkv.report import visualize_layer_mapping as v; v([0], 1, 1); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
