"""Numbers in the cells of a heatmap can be read on every colour of its scale: WCAG 2.2, at least 4.5 : 1."""

import numpy as np
import pytest
from plotly.colors import hex_to_rgb, sample_colorscale, unlabel_rgb

from mtkv.report.figures.all import all_figures

ENOUGH = 4.5


def luminance(rgb):
    """WCAG's relative luminance of a colour given in 0..255."""
    share = np.asarray(rgb, dtype=float) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture(scope="module")
def written(full):
    """Every heatmap with words or numbers in its cells, as the page gets it."""
    found = [
        (f"{figure.id}/{trace['name']}", trace)
        for figure in all_figures(full)
        for trace in figure.payload()["traces"]
        if trace["type"] == "heatmap" and trace["texttemplate"]
    ]
    assert {name.split("/")[0] for name, _ in found} >= {
        "heatmap",
        "matrix",
        "runs",
        "layers_kinds",
        "routing_datasets",
    }
    return found


def test_the_measure_itself():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.005)


def test_every_cell_is_readable(written):
    """The cells that are drawn, and every colour a filter could bring."""
    for name, trace in written:
        values = [value for line in trace["z"] for value in line if value is not None]
        places = (np.array(values) - trace["zmin"]) / (trace["zmax"] - trace["zmin"])
        places = np.clip([*places, *np.linspace(0, 1, 101)], 0, 1)
        ink = hex_to_rgb(trace["textfont"]["color"])
        worst = min(contrast(unlabel_rgb(c), ink) for c in sample_colorscale(trace["colorscale"], list(places)))
        assert worst >= ENOUGH, f"{name}: {worst:.2f}"


def test_scales_still_tell_values_apart(written):
    """Light colours only must not mean one colour."""
    for name, trace in written:
        low, high = (np.array(unlabel_rgb(c)) for c in sample_colorscale(trace["colorscale"], [0, 1]))
        assert np.abs(low - high).max() > 80, name
