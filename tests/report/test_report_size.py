"""A report of 40 arms × 5 seeds × 7 datasets stays small enough to mail, however many items it has: they are capped.

Written with 40 items each, because a tree of 1,000 takes minutes to write; a script that wrote 1,000 made a page of 7.8 MB (2026-11-21).
"""

import json

import pytest

from mtkv.config.study import load_study
from mtkv.report.figures import all_figures
from mtkv.report.items import MAX_ENTRIES
from mtkv.report.page import render
from mtkv.report.results import read_results

ARMS, SEEDS, ITEMS = 40, 5, 40
LIMIT = 15_000_000


@pytest.fixture(scope="module")
def large(study, write_tree, tmp_path_factory):
    config = study.model_dump(mode="json")
    config["seeds"] = list(range(SEEDS))
    for arm in config["arms"].values():
        arm["seeds"] = None
    for number in range(ARMS - len(config["arms"])):
        config["arms"][f"ablation_{number:02d}"] = {
            **config["arms"]["fixed"],
            "extends": ("sft", "single", "fixed")[number % 3],
        }
    made = load_study(config)
    root = tmp_path_factory.mktemp("large") / made.study
    write_tree(root, made, items=ITEMS, answers=True, log_every=2)
    return made, root


@pytest.mark.slow
def test_a_large_study_makes_a_small_page(large, tmp_path, record_property):
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
