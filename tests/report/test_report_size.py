"""A report of 40 arms × 5 seeds × 7 datasets × 1,000 items with long answers stays small enough to mail: items are capped.

How long it takes to open is measured by benchmarks/large_report.py.
"""

import json
from pathlib import Path

import pytest

from mtkv.report.figures.all import all_figures
from mtkv.report.item_browser import MAX_CHARS, MAX_ENTRIES
from mtkv.report.results import read_results
from mtkv.stages.report import render

CONFIG = Path(__file__).parents[1] / "classic_study.yaml"
ARMS, SEEDS, ITEMS = 40, 5, 1000
LIMIT = 15_000_000


@pytest.fixture(scope="module")
def large(write_tree, tree_module, tmp_path_factory):
    made = tree_module.large_study(CONFIG, ARMS, SEEDS)
    root = tmp_path_factory.mktemp("large") / made.study
    write_tree(root, made, items=ITEMS, answers=True, log_every=2, chars=MAX_CHARS)
    return made, root


@pytest.mark.slow
def test_a_large_study_makes_a_small_page(large, tmp_path):
    made, root = large
    facts = render(made, root, tmp_path / "index.html")
    page = (tmp_path / "index.html").read_bytes()
    assert facts["bytes"] == len(page)
    results = read_results(made, root)
    assert (len(results.arms), len(results.seeds), len(results.datasets)) == (ARMS, SEEDS, 7)
    assert results.seed_scores["n"].max() == 7 * ITEMS
    sizes = {figure.id: len(json.dumps(figure.payload())) for figure in all_figures(results)}
    assert len(page) < LIMIT, sizes
    largest = max(sizes, key=sizes.get)
    assert sizes[largest] < LIMIT / 3, sizes
    browser = json.loads(page.split(b'id="item-browser-data">')[1].split(b"</script>")[0])
    shown = sum(len(one["shown"]) for one in browser["lists"])
    assert 0 < shown <= max(MAX_ENTRIES, len(browser["lists"]))
    assert sum(one["n"] for one in browser["lists"]) > shown
    assert {one["of"] for one in browser["lists"]} == {
        ITEMS
    }  # the counts are over all items, and the page says what it leaves out
    assert max(map(len, browser["texts"])) == MAX_CHARS + 2
    note = page.decode().split('<section id="items">')[1].split("</p>")[0]
    assert f"only the first {browser['cap']} per pair and dataset are in this file" in note
