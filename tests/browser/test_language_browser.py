"""The switch of languages, the print view and the drawing of figures when they come into sight."""

import re

import pytest

pytestmark = pytest.mark.browser

FIXED = """() => [...document.querySelectorAll('[data-say]')].filter((e) => !e.closest('dialog'))
  .map((e) => [e.dataset.say, e.textContent])"""
DRAWN_TEXTS = """() => [...document.querySelectorAll('.plot')].flatMap((plot) => [...plot.querySelectorAll('text')]
  .map((text) => [plot.parentNode.id, text.textContent]))"""
HOVER_TEXTS = """() => [...document.querySelectorAll('.plot')].flatMap((plot) => plot.data.flatMap(({ hovertemplate, text }) =>
  [hovertemplate, text].flat(2).filter((one) => typeof one === 'string').map((one) => [plot.parentNode.id, one])))"""
ANSWER_TEXTS = """() => [...document.querySelectorAll('#answer td, #answer th, #answer p, #missing li, .lead, .banner')]
  .filter((one) => one.closest('tr')?.id !== 'claim-kv_beats_sft').map((one) => [one.className, one.textContent])"""
SYMBOLS = {"KV", "Holm", "p", "n", "ln", "GPU", "MB", "K", "V", "k", "e", "m"}
DRAWN = "[...document.querySelectorAll('.plot')].map((plot) => !!plot.querySelector('.main-svg'))"
BOTH = {"n", "p", "", "CSV", "Markdown", "LaTeX"}  # the same in both languages


@pytest.fixture
def study_names(page):
    """Names of arms, datasets, teachers and benchmarks, and what the made-up failures say: no words of the page."""
    data = page.evaluate("JSON.parse(document.getElementById('data').textContent)")
    names = {*data["arms"], *data["datasets"]}
    broken = {part for name in names for part in (f"{name.split('_')[0]}_", name.split("_", 1)[-1])}
    said = "qwen2 gpt2 GSM8K MATH BBH GPQA TruthfulQA CMMLU C Eval of seeds failed out memory"
    return names | broken | set(said.split())


def settle(page):
    page.wait_for_selector("html[data-ready=yes]", state="attached")


def test_every_fixed_word_has_chinese(page, study_names):
    before = page.evaluate(FIXED)
    page.locator("[data-lang=zh]").click()
    settle(page)
    assert page.evaluate("document.documentElement.lang") == "zh"
    assert "lang=zh" in page.evaluate("location.hash")
    after = page.evaluate(FIXED)
    left = {text for _, text in after if re.search("[A-Za-z]{2}", text) and not re.search("[\u4e00-\u9fff]", text)}
    left -= BOTH | study_names | {"</script><img src=x onerror=alert(1)>"}
    assert left == set()
    assert len(after) > 150
    assert page.locator("#figure-bars h3").inner_text() == "各数据集的准确率"
    assert page.locator("#figure-bars .plot .ytitle").inner_html() == "准确率（%）"
    assert page.locator("#figure-heatmap [data-view] option").first.inner_text() == "准确率"
    assert page.locator("nav").get_attribute("aria-label") == "目录"
    assert "kv_beats_sft" not in page.locator("#answer").inner_text()
    assert "支持" in page.locator("#answer").inner_text()
    page.locator("[data-lang=en]").click()
    settle(page)
    assert page.evaluate(FIXED) == before
    assert page.locator("#figure-bars .plot .ytitle").inner_html() == "Accuracy (%)"


def test_no_english_is_left_in_the_pictures_and_the_answer(page, study_names):
    page.locator("[data-lang=zh]").click()
    settle(page)
    assert page.locator("#claim-training_beats_raw th span").first.inner_text() == "用文本训练胜过原始学生。"
    why = page.locator("#claim-training_beats_raw .why").inner_text()
    assert why.endswith("。")
    assert "整个区间高于阈值" in why
    assert page.locator("#claim-training_beats_raw td").nth(2).inner_text().count("百分点") == 1
    for where, text in [*page.evaluate(DRAWN_TEXTS), *page.evaluate(ANSWER_TEXTS), *page.evaluate(HOVER_TEXTS)]:
        words = set(re.findall(r"[A-Za-z_][\w.]*", re.sub(r"<[^>]*>|%\{[^}]*\}|&lt;", " ", text))) - study_names
        assert words <= SYMBOLS, (where, text)
    page.locator("[data-lang=en]").click()
    settle(page)
    assert "undecided, sees ≥" in page.locator("#figure-forest .plot").inner_html()


def test_hover_labels_are_translated(page):
    page.locator("[data-lang=zh]").click()
    settle(page)
    hover = page.evaluate("document.querySelector('#figure-curves .plot').data.map((trace) => trace.hovertemplate)")
    assert any("第 %{x} 步" in text for text in hover if text)
    names = page.evaluate("document.querySelector('#figure-curves .plot').data.map((trace) => trace.name)")
    assert {"sft · 验证", "sft · 训练"} <= set(names)


def test_captions_with_facts_are_translated_with_the_facts(page):
    english = page.locator("#figure-bars figcaption").inner_text()
    page.locator("[data-lang=zh]").click()
    settle(page)
    text = page.locator("#figure-bars figcaption").inner_text()
    assert re.findall(r"\d+(?:\.\d+)?", text) == re.findall(r"\d+(?:\.\d+)?", english)
    assert "宏平均最高" in text


def test_language_and_theme_are_restored_from_the_address(open_page):
    page = open_page("#lang=zh&theme=dark&arms=sft,fixed")
    assert page.locator("#headline h2").inner_text() == "得分"
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.locator("[data-lang=zh]").get_attribute("aria-pressed") == "true"
    page.locator("#reset").click()
    settle(page)
    assert page.locator("#headline h2").inner_text() == "得分"
    assert page.evaluate("location.hash") == "#lang=zh&theme=dark"


def test_no_horizontal_scroll_in_either_language(open_page):
    for fragment in ("", "#lang=zh"):
        page = open_page(fragment)
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        page.evaluate("document.querySelectorAll('details:not(.menu)').forEach((d) => { d.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_figures_are_drawn_when_they_come_into_sight(open_page, until):
    page = open_page()
    first = page.evaluate(DRAWN)
    assert not all(first)
    assert not first[-1]
    page.locator("#figure-cost").scroll_into_view_if_needed()
    page.wait_for_selector("#figure-cost .main-svg")
    page.evaluate("scrollTo(0, 0)")
    page.locator("[data-filter=arms] summary").click()
    page.locator("[data-filter=arms] input[value=sft]").click()
    page.keyboard.press("Escape")
    page.locator("#figure-cost").scroll_into_view_if_needed()
    until(page, "!document.querySelector('#figure-cost .plot').data[0].y.includes('sft')")


def test_print_draws_every_figure_on_white_and_narrow(open_page):
    page = open_page(color_scheme="dark")
    page.locator("#figure-bars").scroll_into_view_if_needed()
    page.wait_for_selector("#figure-bars .main-svg")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert all(page.evaluate(DRAWN))
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    widths = page.evaluate(
        "[...document.querySelectorAll('.plot .main-svg')].map((svg) => svg.getBoundingClientRect().width)"
    )
    assert 300 < max(widths) <= 718  # A4 at 96 dots per inch less the margins
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    settle(page)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("document.querySelector('#figure-bars .main-svg').getBoundingClientRect().width") > 800


def test_pages_on_paper(open_page, screenshots):
    page = open_page()
    paper = page.pdf(path=screenshots / "print.pdf", prefer_css_page_size=True)
    assert 8 < paper.count(b"/Type /Page\n") + paper.count(b"/Type /Page ") < 40
    assert page.problems == []


@pytest.mark.parametrize(("name", "fragment"), [("light", ""), ("dark", "#theme=dark"), ("chinese", "#lang=zh")])
def test_pictures_to_look_at(open_page, screenshots, name, fragment):
    page = open_page(fragment, viewport={"width": 1280, "height": 24_000})
    bottom = int(page.evaluate("document.querySelector('main').getBoundingClientRect().bottom"))
    for part, top in enumerate(range(0, bottom - 100, 1600)):
        clip = {"x": 0, "y": top, "width": 1280, "height": min(1600, bottom - top)}
        file = screenshots / f"{name}-{part:02}.png"
        page.screenshot(path=file, clip=clip)
        assert file.stat().st_size > 5_000
    assert page.problems == []
