"""The made-up study's report, opened in headless Chromium. Without Chromium or Playwright these tests are skipped, in CI they fail."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mtkv.config.study import read_study

TESTS = Path(__file__).parents[1]
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SCREENSHOTS = TESTS.parent / "build/screenshots"
HOSTILE = "</script><img src=x onerror=alert(1)>"


def unavailable(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI the browser tests must run: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if importlib.util.find_spec("playwright") is None:
        unavailable("the Python package playwright is not installed")
    if not Path(CHROMIUM).is_file():
        unavailable(f"no Chromium at {CHROMIUM}; install Debian's chromium or set CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, timeout=180_000)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """File URL of a report with one missing cell, a failed run, and hostile text in a claim and in the items."""
    from mtkv.stages.report import render

    spec = importlib.util.spec_from_file_location("study_tree", TESTS / "report/study_tree.py")
    assert spec is not None
    assert spec.loader is not None
    tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tree)
    study = read_study(TESTS / "classic_study.yaml")
    claim = study.claims["kv_beats_sft"].model_copy(update={"statement": HOSTILE})
    study = study.model_copy(update={"claims": study.claims | {"kv_beats_sft": claim}})
    root = tmp_path_factory.mktemp("browser") / "pocket"
    failed = (("fixed_shuffled", 43, "pocket_gpqa"),)
    tree.write_study_tree(root, study, items=60, missing=(("similarity", "pocket_bbh"),), failed=failed, answers=True)
    questions = root / "data/test/pocket_gsm8k.parquet"
    frame = pd.read_parquet(questions)
    frame.assign(question=HOSTILE + frame["id"], answer=HOSTILE).to_parquet(questions)
    render(study, root, root / "report/index.html")
    return (root / "report/index.html").as_uri()


@pytest.fixture
def open_page(browser: Any, report: str) -> Iterator[Callable[..., Any]]:
    """`open_page(hash="", **context options)` → a page that has drawn what is in sight; `page.problems`: console output and requests."""
    contexts: list[Any] = []

    def open_(fragment: str = "", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = watched(context, report)
        page.goto(report + fragment)
        if options.get("java_script_enabled", True):
            drawn(page)
        return page

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where pictures of the page are kept, to be looked at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS


@pytest.fixture(scope="module")
def shared(browser: Any, report: str) -> Iterator[Any]:
    """A page that is opened once, in a window so tall that every figure is drawn."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 24_000}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = watched(context, report)
    page.goto(report)
    drawn(page)
    yield page
    context.close()


@pytest.fixture
def page(shared: Any) -> Any:
    """The shared page in its first state."""
    shared.keyboard.press("Escape")
    shared.locator("#reset").click()
    shared.locator("[data-lang=en]").click()
    drawn(shared)
    shared.evaluate("document.activeElement.blur()")
    assert shared.problems == []
    return shared


@pytest.fixture(scope="session")
def until() -> Callable[[Any, str], None]:
    """`until(page, expression)` waits for an expression to be true; Playwright's own way needs an eval, which the page's policy forbids."""

    def wait(page: Any, expression: str) -> None:
        for _ in range(600):
            if page.evaluate(expression):
                return
            page.wait_for_timeout(100)
        raise AssertionError(f"never true: {expression}")

    return wait


def watched(context: Any, report: str) -> Any:
    """A new page that notes console output, errors, dialogs and requests in `problems`."""
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.problems = []
    page.on("console", lambda message: page.problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: page.problems.append(f"error: {error}"))
    page.on("dialog", lambda dialog: page.problems.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: page.problems.append(request.url) if is_outside(request.url, report) else None)
    return page


def is_outside(url: str, report: str) -> bool:
    return not url.startswith(("data:", "blob:")) and url.split("#")[0] != report


def drawn(page: Any) -> None:
    page.wait_for_selector("html[data-ready=yes]", state="attached")
