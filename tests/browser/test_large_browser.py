"""A report of 40 arms × 5 seeds × 7 datasets: only what is in sight is drawn."""

import importlib.util
from pathlib import Path

import pytest

from mtkv.stages.report import render

pytestmark = [pytest.mark.browser, pytest.mark.slow]
TESTS = Path(__file__).parents[1]
ARMS, SEEDS = 40, 5


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """File URL of the page. How many items there are does not change it: their number is capped."""
    spec = importlib.util.spec_from_file_location("study_tree", TESTS / "report/study_tree.py")
    tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tree)
    study = tree.large_study(TESTS / "classic_study.yaml", ARMS, SEEDS)
    root = tmp_path_factory.mktemp("large") / study.study
    tree.write_study_tree(root, study, items=40, answers=True, log_every=2)
    render(study, root, root / "report/index.html")
    return (root / "report/index.html").as_uri()


def test_a_large_report_draws_only_what_is_in_sight(browser, large):
    """How long it takes to open is for a benchmark, not for a test on a busy machine."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(large)
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    assert page.locator("#scores tbody tr").count() == ARMS
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert not page.evaluate("!!document.querySelector('#figure-cost .main-svg')")
    context.close()
