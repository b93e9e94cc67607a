"""The item browser: filters, counts, the URL, and text that stays text."""

import re

import pytest

pytestmark = pytest.mark.browser

HOSTILE = "</script><img src=x onerror=alert(1)>"


def settle(page):
    page.wait_for_selector("html[data-ready=yes]", state="attached")


def choose(page, **values):
    for name, value in values.items():
        page.locator(f"[data-item={name}]").select_option(value)


def island(page):
    return page.evaluate("JSON.parse(document.getElementById('item-browser-data').textContent)")


def ids(page):
    return page.locator("#item-list .item code").all_inner_texts()


def test_choices_pick_the_list_and_the_count_is_over_all_items(page):
    choose(page, right="learnable", wrong="sft", dataset="pocket_bbh")
    known = next(
        one
        for one in island(page)["lists"]
        if (one["arm"], one["other"], one["dataset"]) == ("learnable", "sft", "pocket_bbh")
    )
    assert ids(page) == [entry[0] for entry in known["shown"]][:20]
    counts = [int(text) for text in re.findall(r"\d+", page.locator("#item-count").inner_text())]
    assert counts == [known["n"], len(known["shown"]), min(20, len(known["shown"]))]
    page.locator("#item-swap").click()
    assert page.locator("[data-item=right]").input_value() == "sft"
    assert not set(ids(page)) & {entry[0] for entry in known["shown"]}


def test_an_item_shows_question_gold_and_both_answers(page):
    choose(page, right="learnable", wrong="sft", dataset="pocket_bbh")
    item = page.locator("#item-list .item").first
    item.locator("summary").focus()
    page.keyboard.press("Enter")
    text = item.inner_text()
    name = ids(page)[0]
    assert f"What of {name}? <img src=x onerror=alert(3)>" in text
    assert f"says of {name}: yes <b>&" in text
    assert f"says of {name}: no <b>&" in text


def test_hostile_items_stay_text(page):
    choose(page, right="learnable", wrong="sft", dataset="pocket_gsm8k")
    page.locator("#item-list .item summary").first.click()
    assert page.locator("#item-list .item dd").nth(0).inner_text().startswith(HOSTILE)
    assert page.locator("#item-list .item dd").nth(1).inner_text() == HOSTILE
    assert page.locator("#item-list img, #item-list b").count() == 0
    assert page.problems == []


def test_search_more_and_the_filter_of_arms(page):
    everything = len(ids(page))
    assert everything == 20
    page.locator("#item-more").click()
    assert len(ids(page)) == 40
    assert page.evaluate("document.activeElement.closest('.item') === document.querySelectorAll('.item')[20]")
    page.locator("[data-item=search]").fill("POCKET_BBH-00000")
    assert ids(page)
    assert all("pocket_bbh-00000" in name for name in ids(page))
    page.locator("[data-item=search]").fill("")
    page.locator("[data-filter=arms] summary").click()
    page.locator("[data-filter=arms] [data-none]").click()
    page.locator("[data-filter=arms] input[value=sft]").click()
    page.locator("[data-filter=arms] input[value=single]").click()
    settle(page)
    page.keyboard.press("Escape")
    options = page.locator("[data-item=right] option").all_inner_texts()
    assert sorted(options[1:]) == ["sft", "single"]


def test_the_address_restores_the_choice(page, open_page):
    choose(page, right="learnable", wrong="fixed", dataset="pocket_gpqa")
    page.locator("[data-item=search]").fill("-00000")
    again = open_page(page.evaluate("location.hash"))
    assert ids(again) == ids(page)
    assert again.locator("[data-item=search]").input_value() == "-00000"
    assert again.locator("[data-item=wrong]").input_value() == "fixed"


def test_items_without_javascript(open_page):
    page = open_page(java_script_enabled=False)
    rows = page.locator("table.items tbody tr")
    assert rows.count() == 20
    assert HOSTILE in rows.first.inner_text() or "What of" in rows.first.inner_text()
    assert page.problems == []
