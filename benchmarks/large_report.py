"""How long a report of 40 arms × 5 seeds × 7 datasets × 1,000 items takes to open in headless Chromium.

python benchmarks/large_report.py [page.html]    prints JSON: MB, and medians of three openings in milliseconds

`answer`: the HTML is read, claims and scores stand there; `in_sight`: the plots of a window of 1280 × 900 are drawn; `all_plots`: every
plot is, in a window as tall as the page; `load_average` says how busy the machine was. Without an argument the study is made up
(tests/report/study_tree.py) and rendered first, which takes minutes. Needs Playwright and Debian's chromium, as the browser tests do.
"""

import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
REPEATS = 3
WINDOW = {"width": 1280, "height": 900}
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
READY = "html[data-ready=yes]"


def made_page(folder: Path) -> Path:
    """The page of a made-up study of the full size."""
    from mtkv.stages.report import render

    place = REPOSITORY / "tests/report/study_tree.py"
    spec = importlib.util.spec_from_file_location("study_tree", place)
    assert spec is not None
    assert spec.loader is not None
    tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tree)
    study = tree.large_study(REPOSITORY / "config/config.yaml")
    root = folder / study.study
    tree.write_study_tree(root, study, items=1000, answers=True, log_every=2, chars=600)
    render(study, root, root / "report/index.html")
    return root / "report/index.html"


def opened(browser: Any, page: Path, height: int) -> dict[str, float]:
    """Milliseconds until the HTML is read and until what the window shows is drawn, the page's height and its number of plots."""
    context = browser.new_context(viewport=WINDOW | {"height": height})
    tab = context.new_page()
    tab.set_default_timeout(600_000)
    start = time.perf_counter()
    tab.goto(page.as_uri(), wait_until="domcontentloaded")
    answer = time.perf_counter()
    tab.wait_for_selector(READY, state="attached")
    end = time.perf_counter()
    plots, drawn, tall = tab.evaluate(
        "[document.querySelectorAll('.plot').length, document.querySelectorAll('.plot > .plot-container').length, "
        "document.documentElement.scrollHeight]"
    )
    context.close()
    return {
        "answer": 1e3 * (answer - start),
        "drawn": 1e3 * (end - start),
        "plots": plots,
        "shown": drawn,
        "tall": tall,
    }


def measured(page: Path) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        opened(browser, page, WINDOW["height"])  # the file and the program are in memory from here on
        near = [opened(browser, page, WINDOW["height"]) for _ in range(REPEATS)]
        whole = [opened(browser, page, int(near[0]["tall"])) for _ in range(REPEATS)]
        browser.close()
    assert whole[0]["shown"] == whole[0]["plots"], "some plots were not drawn"

    def median(runs: list[dict[str, float]], name: str) -> int:
        return round(statistics.median(run[name] for run in runs))

    return {
        "megabytes": round(page.stat().st_size / 1e6, 2),
        "plots": int(whole[0]["plots"]),
        "milliseconds": {
            "answer": median(near, "answer"),
            "in_sight": median(near, "drawn"),
            "all_plots": median(whole, "drawn"),
        },
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = Path(sys.argv[1]).resolve() if sys.argv[1:] else made_page(Path(folder))
        print(json.dumps(measured(page)))


if __name__ == "__main__":
    main()
