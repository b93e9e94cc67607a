"""Plotly's library is the small one, has what the figures need, and says what it is."""

import hashlib
import json
import re
from pathlib import Path

import mtkv.report
from mtkv.report.figures.all import all_figures
from mtkv.report.page import plotly_script
from mtkv.report.static_figures import KINDS

BUNDLE = Path(mtkv.report.__file__).parent / "bundle"
TRACES = {"bar", "heatmap", "scatter", "scatterpolar", "waterfall"}


def test_the_bundle_has_the_trace_types_of_the_figures_and_no_others(full):
    asked = set(re.findall(r"plotly\.js/lib/(\w+)", (BUNDLE / "entry.js").read_text())) - {"core"}
    assert asked | {"scatter"} == TRACES == set(KINDS)
    assert {trace["type"] for figure in all_figures(full) for trace in figure.traces} <= TRACES
    script = plotly_script()
    for name in ("histogram2d", "scatter3d", "sankey"):
        assert f'name:"{name}"' not in script
    for name in TRACES:
        assert f'name:"{name}"' in script


def test_the_bundle_is_small_and_says_its_version_and_licence():
    script = plotly_script()
    version = json.loads((BUNDLE / "package.json").read_text())["dependencies"]["plotly.js"]
    assert f"* plotly.js v{version}," in script[:200]
    assert "MIT" in script[:400]
    assert len(script) < 1_300_000
    notices = (BUNDLE.parent / "static/plotly.LICENSES.txt").read_text(encoding="utf-8")
    assert f"plotly.js {version}\n" in notices
    assert "@plotly/d3" in notices
    assert "new Function" not in script
    assert hashlib.sha256(script.encode()).hexdigest() == (BUNDLE / "plotly.min.js.sha256").read_text().split()[0]
