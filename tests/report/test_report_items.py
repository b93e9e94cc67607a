"""The item browser counts like a brute-force loop over the items, shows what the files say, and is capped."""

import itertools

import pandas as pd
import pytest

from mtkv.evaluate.predictions import read_predictions
from mtkv.report.item_browser import ITEM_HEADER, MAX_CHARS, Book, compared, item_browser, item_rows


@pytest.fixture(scope="module")
def browser(full):
    return item_browser(full)


@pytest.fixture(scope="module")
def right(full_tree):
    """(arm, dataset, item) → seed → correct."""
    frame = pd.read_parquet(full_tree / "compare/items.parquet")
    found = {}
    for row in frame.itertuples():
        found.setdefault((row.arm, row.dataset, row.item), {})[row.seed] = row.correct
    return found


def share(marks):
    return sum(marks.values()) / len(marks)


def test_counts_are_over_all_items(browser, right):
    assert len(browser["lists"]) > 100
    of = {}
    for arm, name, item in right:
        of.setdefault((arm, name), []).append(item)
    for one in browser["lists"]:
        name = one["dataset"]
        pairs = [
            tuple(share(right[arm, name, item]) for arm in (one["arm"], one["other"])) for item in of[one["arm"], name]
        ]
        assert one["of"] == len(pairs) == 60
        assert one["n"] == sum(ours > theirs for ours, theirs in pairs)
        assert one["lost"] == sum(ours < theirs for ours, theirs in pairs)
        assert len(one["shown"]) == min(one["n"], browser["cap"])
        leads = [entry[1] - entry[2] for entry in one["shown"]]
        assert leads == pytest.approx(sorted(leads, reverse=True), abs=2e-3)  # shares are rounded to three digits
        if leads and len(leads) < one["n"]:
            assert leads[-1] >= sorted((a - b for a, b in pairs), reverse=True)[len(leads) - 1] - 1e-3


def test_both_directions_of_every_pair_and_no_arm_with_missing_runs(browser, full):
    seen = {(one["arm"], one["other"], one["dataset"]) for one in browser["lists"]}
    assert all((other, arm, name) in seen for arm, other, name in seen)
    assert not any("similarity" in key and "pocket_bbh" in key for key in seen)
    assert not any("fixed_shuffled" in key and "pocket_gpqa" in key for key in seen)
    wanted = {
        frozenset(pair)
        for pair in itertools.chain(full.extends.items(), ((arm, "sft") for arm in full.arms if arm != "sft"))
    }
    wanted |= {frozenset(("learnable", other)) for other in ("single", "fixed")} | {frozenset(("similarity", "fixed"))}
    assert {frozenset(pair) for pair in compared(full)} == wanted


def test_shown_answers_are_those_of_the_predictions(browser, right, full_tree):
    texts = browser["texts"]
    for one in browser["lists"][::7]:
        for item, ours, theirs, seed, other_seed, output, other_output in one["shown"]:
            assert ours == pytest.approx(share(right[one["arm"], one["dataset"], item]), abs=1e-3)
            assert theirs == pytest.approx(share(right[one["other"], one["dataset"], item]), abs=1e-3)
            for arm, number, said, mark in (
                (one["arm"], seed, output, 1.0),
                (one["other"], other_seed, other_output, 0.0),
            ):
                assert right[arm, one["dataset"], item][number] == mark
                rows, _ = read_predictions(full_tree / f"predictions/{arm}/seed{number}/{one['dataset']}.parquet")
                row = rows.set_index("item").loc[item]
                assert texts[said] == (row["output"] if isinstance(row["output"], str) else row["filtered"])
            question, gold = (texts[number] for number in browser["questions"][one["dataset"]][item])
            assert question.startswith(f"What of {item}? <img src=x")
            assert ("\nA. yes\nB. no" in question) == (
                one["dataset"] in ("pocket_math500", "pocket_gpqa", "pocket_cmmlu")
            )
            assert gold == "yes"


def test_the_cap_is_kept_and_texts_are_there_once(full, monkeypatch):
    monkeypatch.setattr("mtkv.report.item_browser.MAX_ENTRIES", 400)
    small = item_browser(full)
    assert small["cap"] == 400 // len(small["lists"])
    assert sum(len(one["shown"]) for one in small["lists"]) <= 400
    assert len(set(small["texts"])) == len(small["texts"])


def test_long_texts_are_cut(full):
    book = Book(full, {})
    assert [book.number("x" * MAX_CHARS), book.number("x" * (MAX_CHARS + 1)), book.number("x" * (MAX_CHARS + 9))] == [
        0,
        1,
        1,
    ]
    assert list(book.texts)[1] == "x" * MAX_CHARS + " …"


def test_texts_together_are_capped_list_by_list(full, browser, monkeypatch):
    monkeypatch.setattr("mtkv.report.item_browser.MAX_TEXT", 20_000)
    small = item_browser(full)
    size = sum(len(text.encode()) for text in small["texts"])
    assert 20_000 <= size < 20_000 + 4 * (MAX_CHARS + 4)
    counts = [len(one["shown"]) for one in small["lists"]]
    assert 0 < sum(counts) < sum(len(one["shown"]) for one in browser["lists"])
    wanted = [min(one["n"], small["cap"]) for one in small["lists"]]
    assert max(counts) - min(count for count, want in zip(counts, wanted, strict=True) if count < want) <= 1
    assert [one["n"] for one in small["lists"]] == [one["n"] for one in browser["lists"]]


def test_rows_of_the_table(browser):
    rows = list(item_rows(browser))
    assert len(rows) == sum(len(one["shown"]) for one in browser["lists"])
    assert all(len(row) == len(ITEM_HEADER) for row in rows)
    first = next(one for one in browser["lists"] if one["shown"])
    assert rows[0][:4] == [first["arm"], first["other"], first["dataset"], first["shown"][0][0]]


def test_no_browser_without_questions_or_predictions(tree, study):
    from mtkv.report.results import read_results

    assert item_browser(read_results(study, tree)) is None
