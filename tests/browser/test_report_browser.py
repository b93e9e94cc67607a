"""What a reader can do with the page, in a real browser, and what the page must never do."""

import csv
import io
import json
import re

import pytest

from mtkv.report.tables import as_latex, as_markdown

pytestmark = pytest.mark.browser

# Every figure's drawn data, without what plotly adds.
SHOWN = """() => Object.fromEntries([...document.querySelectorAll('.figure')].map((figure) => {
  const data = figure.querySelector('.plot').data;
  return [figure.dataset.figure, data ? JSON.stringify(data.map((t) => [t.name, t.x, t.y, t.z, t.r, t.theta])) : ''];
}))"""
TALL = {"width": 1280, "height": 24_000}  # every figure is in sight and drawn
ARM_FIGURES = {
    "bars",
    "radar",
    "heatmap",
    "waterfall",
    "forest",
    "matrix",
    "runs",
    "where",
    "ablations",
    "curves",
    "kv_and_ce",
    "kv_and_accuracy",
    "gap",
    "routing_steps",
    "routing_entropy",
    "routing_datasets",
    "cost",
}
DATASET_FIGURES = {"bars", "radar", "heatmap", "waterfall", "runs", "routing_datasets"}
SEED_FIGURES = {
    "bars",
    "radar",
    "heatmap",
    "waterfall",
    "forest",
    "where",
    "ablations",
    "curves",
    "kv_and_ce",
    "kv_and_accuracy",
}
# Figures about maps and teachers: no arm, dataset or seed is in them.
UNFILTERED = {"coverage", "layers", "tokens", "probe"}


def settle(page):
    page.wait_for_selector("html[data-ready=yes]", state="attached")


def toggle(page, kind, value):
    menu = page.locator(f"[data-filter={kind}]")
    menu.locator("summary").click()
    menu.locator(f"input[value='{value}']").click()
    settle(page)
    page.keyboard.press("Escape")


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


def column(page, name):
    return page.locator(f"#scores tbody tr:visible td[data-column='{name}']").all_inner_texts()


def arms(page):
    return page.evaluate(
        "[...document.querySelectorAll('#scores tbody tr')].filter((r) => !r.hidden).map((r) => r.dataset.arm)"
    )


def test_opens_offline_without_errors_and_hostile_text_stays_text(page):
    assert page.problems == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert "<img src=x onerror=alert(1)>" in page.locator("#claim-kv_beats_sft").inner_text()
    assert page.locator(".plot .main-svg").count() > 10
    shown = page.evaluate(SHOWN)
    assert all(shown.values()), [name for name, data in shown.items() if not data]


def test_policy_is_in_force(open_page, until):
    page = open_page()
    page.evaluate(
        """() => { window.reached = [];
        document.addEventListener('securitypolicyviolation', (e) => window.reached.push(e.effectiveDirective));
        const script = document.createElement('script'); script.textContent = 'window.ran = true'; document.body.append(script);
        const image = document.createElement('img'); image.src = 'http://127.0.0.1:9/x.png'; document.body.append(image);
        fetch('http://127.0.0.1:9/').catch(() => {}); }"""
    )
    until(page, "window.reached.length >= 3")
    assert set(page.evaluate("window.reached")) == {"script-src-elem", "img-src", "connect-src"}
    assert page.evaluate("window.ran") is None


def test_filter_of_arms_datasets_and_seeds_changes_plots_and_table(page):
    before = page.evaluate(SHOWN)
    assert set(before) == ARM_FIGURES | UNFILTERED
    toggle(page, "arms", "learnable")
    assert changed(before, page.evaluate(SHOWN)) == ARM_FIGURES - {"where"}  # which has arms with a twin only
    assert "learnable" not in arms(page)
    toggle(page, "arms", "fixed")
    assert changed(before, page.evaluate(SHOWN)) == ARM_FIGURES
    page.locator("#reset").click()
    settle(page)
    assert page.evaluate(SHOWN) == before
    toggle(page, "datasets", "pocket_gpqa")
    assert changed(before, page.evaluate(SHOWN)) >= DATASET_FIGURES
    assert not page.locator("#scores thead [data-column=pocket_gpqa]").is_visible()
    page.locator("#reset").click()
    toggle(page, "seeds", "43")
    assert changed(before, page.evaluate(SHOWN)) >= SEED_FIGURES
    assert page.locator("#subset").is_visible()
    assert page.locator("#scores .ci:visible").count() == 0


def test_means_over_a_subset_of_seeds(page):
    toggle(page, "seeds", "43")
    cell = page.locator("#scores tr[data-arm=fixed] td[data-column=pocket_bbh]")
    seeds = json.loads(cell.get_attribute("data-seeds"))
    expected = (seeds["42"] + seeds["44"]) / 2
    assert float(cell.locator(".number").inner_text()) == pytest.approx(expected, abs=0.0501)
    bars = page.evaluate(
        "document.querySelector('#figure-bars .plot').data.find((t) => t.type === 'bar' && t.name === 'fixed')"
    )
    assert bars["y"][2] == pytest.approx(expected)
    assert "error_y" not in bars


def test_waterfall_keeps_its_total_when_datasets_are_hidden(page):
    total = """(() => { const trace = document.querySelector('#figure-waterfall .plot').data[0];
        return [trace.x.length, trace.y.reduce((a, b) => a + b, 0)]; })()"""
    count, before = page.evaluate(total)
    toggle(page, "datasets", "pocket_gpqa")
    toggle(page, "datasets", "pocket_bbh")
    fewer, after = page.evaluate(total)
    assert fewer == count - 1
    assert after == pytest.approx(before)


def test_address_restores_the_state(page, open_page):
    toggle(page, "arms", "raw")
    toggle(page, "seeds", "44")
    page.locator("#scores thead [data-column=macro] .sort").click()
    page.locator("#figure-heatmap [data-view]").select_option("delta")
    settle(page)
    address = page.evaluate("location.hash")
    again = open_page(address, viewport=TALL)
    assert again.evaluate("location.hash") == address
    assert arms(again) == arms(page)
    assert again.evaluate(SHOWN) == page.evaluate(SHOWN)
    assert again.locator("#figure-heatmap [data-view]").input_value() == "delta"


def test_a_hash_with_unknown_names_is_harmless(page, until):
    page.evaluate("location.hash = '#arms=nobody,sft&order=zzz,macro&sort=zzz:descending&view.bars=zzz&hide=<img>'")
    until(page, "document.querySelector('[data-filter=arms] .count').textContent === '1/9'")
    settle(page)
    assert page.problems == []
    assert arms(page) == ["sft"]


def test_sort_keeps_the_baseline_on_top(page):
    button = page.locator("#scores thead [data-column=pocket_gsm8k] .sort")
    for direction in ("descending", "ascending"):
        button.click()
        settle(page)
        assert page.locator("#scores thead [data-column=pocket_gsm8k]").get_attribute("aria-sort") == direction
        assert arms(page)[0] == "sft"
        values = [float(text.split()[0].rstrip("●")) for text in column(page, "pocket_gsm8k")[1:]]
        assert values == sorted(values, reverse=direction == "descending")


def test_columns_hide_and_move_and_the_copy_follows(page, until):
    page.locator("#columns summary").click()
    page.locator("#columns [data-column=pocket_ceval] input").click()
    page.locator("#columns [data-column=pocket_math500] [data-move='-1']").click()
    settle(page)
    page.keyboard.press("Escape")
    page.locator("#headline [data-copy=csv]").click()
    page.wait_for_selector("#toast.on")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0].split(",")[:3] == ["arm", "pocket_math500", "pocket_gsm8k"]
    assert "pocket_ceval" not in lines[0]
    assert len(lines) == 10
    assert "missing" in next(line for line in lines if line.startswith("similarity"))
    page.locator("#headline [data-copy=latex]").click()
    until(page, "navigator.clipboard.readText().then((text) => text.startsWith('\\\\begin{tabular}{lrrrrrrr}'))")
    page.locator("#headline [data-copy=markdown]").click()
    until(page, "navigator.clipboard.readText().then((text) => text.startsWith('| arm | pocket_math500 |'))")


def test_the_numbers_of_a_figure_copy_as_booktabs(page):
    figure = page.locator("#figure-forest")
    figure.locator(".numbers > summary").click()
    figure.locator("[data-copy=latex]").click()
    page.wait_for_selector("#toast.on")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0] == "\\begin{tabular}{" + "l" + "r" * 10 + "}"
    assert [lines[1], lines[3], *lines[-2:]] == ["\\toprule", "\\midrule", "\\bottomrule", "\\end{tabular}"]
    assert lines[2].startswith("Dataset & Arm & Against & $\\Delta$ (points) & ")
    assert len(lines) == 6 + figure.locator("tbody tr").count()
    figure.locator(".numbers > summary").click()


def test_a_copy_keeps_its_rows_whatever_a_cell_holds(page, until):
    figure = page.locator("#figure-forest")
    figure.locator(".numbers > summary").click()
    cell = figure.locator("tbody td").first
    before, said = cell.inner_text(), "a\rb\nc\x1b[31m\x7f | \\ & < 50 %\x85\u2028\u2029"
    cell.evaluate("(cell, said) => { cell.textContent = said; }", said)
    for kind, form in (("markdown", as_markdown), ("latex", as_latex)):
        figure.locator(f"[data-copy={kind}]").click()
        (expected,) = (line for line in form(["x"], [[said]]).split("\n") if "31m" in line)
        expected = expected.removesuffix(" |").removesuffix(r" \\")
        line = f"text.split('\\n')[{2 if kind == 'markdown' else 4}]"
        until(page, f"navigator.clipboard.readText().then((text) => {line}?.startsWith({json.dumps(expected)}))")
    cell.evaluate("(cell, said) => { cell.textContent = said; }", before)
    figure.locator(".numbers > summary").click()


def test_the_claims_copy_with_their_verdicts(page):
    answer = page.locator("#answer")
    answer.locator("[data-copy=csv]").click()
    page.wait_for_selector("#toast.on")
    rows = list(csv.reader(io.StringIO(page.evaluate("navigator.clipboard.readText()"))))
    assert len(rows) == 1 + answer.locator(".claims tbody tr").count() > 5
    assert {len(row) for row in rows} == {6}
    assert rows[0] == answer.locator("thead th").all_inner_texts()
    verdicts = answer.locator("tbody .badge").all_inner_texts()
    assert [row[0] for row in rows[1:]] == [" ".join(verdict.split()) for verdict in verdicts]
    assert any(row[1].startswith("</script><img src=x onerror=alert(1)> ") for row in rows)
    answer.locator("[data-copy=latex]").click()
    assert answer.locator("[data-copy]").count() == 3


def test_every_plot_has_a_name_and_a_description(page):
    for figure in page.locator("figure").all():
        plot = page.get_by_role("img", name=figure.locator("h3").inner_text(), exact=True)
        assert plot.count() == 1
        described = page.locator("#" + plot.get_attribute("aria-describedby")).inner_text()
        assert len(described) > 30
        assert figure.locator("tbody tr").count() > 0


def test_a_number_leads_to_its_cards(page):
    page.locator("#scores tr[data-arm=learnable] td[data-column=pocket_gsm8k] .number").click()
    dialog = page.locator("dialog[open]")
    assert dialog.locator("summary").all_inner_texts() == [
        f"{stage}/learnable/seed{seed}" for seed in (42, 43, 44) for stage in ("arms", "predictions")
    ]
    assert '"code_digest": "abc123"' in dialog.locator("pre").first.inner_text()
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_keyboard_reaches_every_control(page):
    wanted = page.evaluate(
        "[...document.querySelectorAll('button, select, summary, nav a')].filter((e) => e.checkVisibility()).length"
    )
    page.evaluate("document.querySelector('.skip').focus()")
    reached = 0
    for _ in range(wanted * 2):
        page.keyboard.press("Tab")
        tag, outline = page.evaluate(
            "[document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]"
        )
        if tag == "BODY":
            break
        if tag in ("BUTTON", "SELECT", "SUMMARY") or (
            tag == "A" and page.evaluate("!!document.activeElement.closest('nav')")
        ):
            reached += 1
            assert outline != "none"
    assert reached == wanted


def test_dark_mode_follows_the_system_and_the_button(page, open_page):
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page = open_page(color_scheme="dark", viewport=TALL)
    dark = page.evaluate(background)
    ink = page.evaluate("document.querySelector('#figure-bars .plot').layout.font.color")
    page.locator("#theme").click()
    settle(page)
    assert page.evaluate(background) == light != dark
    assert page.evaluate("document.querySelector('#figure-bars .plot').layout.font.color") != ink


# [colour of the text, colour behind it] of every number inside a cell or a bar
WRITTEN = """() => [...document.querySelectorAll('.heatmap-label text, text.bartext-inside')].map((text) => {
  const bar = text.closest('.point')?.querySelector('path');
  return [getComputedStyle(text).fill, bar ? getComputedStyle(bar).fill : ''];
})"""


def luminance(rgb):
    share = [int(part) / 255 for part in re.findall(r"\d+", rgb)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in share]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_inside_cells_and_bars_are_readable(open_page, scheme):
    """Of cells that their text is the ink that tests/report/test_contrast.py measures on every colour of the scales."""
    shown = open_page(color_scheme=scheme, viewport=TALL).evaluate(WRITTEN)
    cells = [ink for ink, bar in shown if not bar]
    assert len(cells) > 50
    assert set(cells) == {"rgb(17, 17, 17)"}
    bars = [sorted(map(luminance, pair)) for pair in shown if pair[1]]
    assert len(bars) > 10
    assert min((light + 0.05) / (dark + 0.05) for dark, light in bars) >= 4.5


def test_exports_are_files(page):
    for kind in ("svg", "png", "csv"):
        with page.expect_download() as download:
            page.locator(f"#figure-bars [data-export={kind}]").click()
        assert download.value.suggested_filename == f"bars.{kind}"
    assert page.problems == []


def test_reads_without_javascript(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("#scores tbody tr").count() == 9
    assert page.locator("img.still").count() == page.locator("figure").count() > 10
    assert page.locator("img.still").first.is_visible()
    assert not page.locator(".toolbar").is_visible()
    assert "supported" in page.locator("#answer").inner_text()
    assert page.problems == []


def test_print_shows_content_without_controls(open_page):
    page = open_page()
    page.emulate_media(media="print")
    assert not page.locator(".toolbar").is_visible()
    assert not page.locator(".side").is_visible()
    assert page.locator("#scores").is_visible()
    assert page.pdf().count(b"/Type /Page") > 3
