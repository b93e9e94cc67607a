"""Pictures of one alignment for a notebook: which teacher layers, and which teacher tokens, a student reads.

Takes arrays, nested lists or tensors of any library that numpy can read; returns plotly figures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from mtkv.report.figures.palette import SEQUENTIAL


def visualize_layer_mapping(layer_map: Any, num_teacher_layers: int, num_student_layers: int) -> go.Figure:
    """Heat map of the weights, student layers down, teacher layers across.

    `layer_map`: `{student: [(teacher, weight), …]}`, one teacher layer per student layer, or the matrix `[student_layers, teacher_layers]`.
    Raises ValueError where it does not fit the layer counts.
    """
    weights = _layer_matrix(layer_map, num_teacher_layers, num_student_layers)
    figure = _heatmap(weights, [str(i) for i in range(num_teacher_layers)], [str(i) for i in range(num_student_layers)])
    figure.update_layout(
        title=f"Teacher layers ({num_teacher_layers}) read by student layers ({num_student_layers})",
        xaxis_title="teacher layer",
        yaxis_title="student layer",
    )
    return figure


def visualize_alignment(align_matrix: Any, student_tokens: Sequence[str], teacher_tokens: Sequence[str]) -> go.Figure:
    """Heat map of an alignment matrix `[student_time, teacher_time]` with the tokens on its sides.

    Raises ValueError where the matrix does not fit the tokens.
    """
    matrix, shape = _array(align_matrix), (len(student_tokens), len(teacher_tokens))
    if matrix.shape != shape:
        raise ValueError(
            f"align_matrix is {matrix.shape}, but there are {shape[0]} student and {shape[1]} teacher tokens"
        )
    figure = _heatmap(matrix, list(teacher_tokens), list(student_tokens))
    figure.update_layout(
        title="Student tokens and the teacher tokens they are compared with",
        xaxis_title="teacher token",
        yaxis_title="student token",
    )
    return figure


def _heatmap(matrix: Float[np.ndarray, "rows columns"], columns: list[str], rows: list[str]) -> go.Figure:
    """A heat map over row and column numbers with the labels as tick text, because two tokens may read the same."""
    x, y = list(range(len(columns))), list(range(len(rows)))
    labels = [[f"{row} ← {column}" for column in columns] for row in rows]
    trace = go.Heatmap(
        z=matrix, x=x, y=y, text=labels, colorscale=SEQUENTIAL, zmin=0, zmax=1, colorbar_title="weight",
        hovertemplate="%{text}<br>weight %{z:.3f}<extra></extra>",
    )  # fmt: skip
    figure = go.Figure(trace)
    figure.update_xaxes(tickmode="array", tickvals=x, ticktext=columns, constrain="domain")
    figure.update_yaxes(tickmode="array", tickvals=y, ticktext=rows, autorange="reversed")
    return figure


def _layer_matrix(layer_map: Any, teacher: int, student: int) -> Float[np.ndarray, "student_layers teacher_layers"]:
    """The matrix of a layer map in any of the three notations of `visualize_layer_mapping`."""
    if isinstance(layer_map, Mapping):
        entries = [(s, t, w) for s, sources in layer_map.items() for t, w in sources]
    else:
        given = _array(layer_map)
        if given.shape == (student, teacher):
            return given
        if given.shape != (student,) or given.dtype == object:
            raise ValueError(
                f"layer_map has shape {given.shape}, expected one teacher's map, {(student, teacher)} or {(student,)}"
            )
        entries = [(s, int(t), 1.0) for s, t in enumerate(given)]
    outside = [(s, t) for s, t, _ in entries if not (0 <= s < student and 0 <= t < teacher)]
    if outside:
        raise ValueError(f"layer_map names (student, teacher) layers {outside[:3]} outside {(student, teacher)}")
    weights = np.zeros((student, teacher))
    for s, t, w in entries:
        weights[s, t] = w
    return weights


def _array(values: Any) -> np.ndarray:
    """A numpy array; tensors are detached and brought to the host first."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
