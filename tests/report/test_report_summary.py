"""results.json, comparison_report.md and model_comparison.csv say what the parquet files say."""

import csv
import io
import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest

from mtkv.report.figures.all import FIGURE_SECTIONS, all_figures
from mtkv.report.item_browser import item_browser
from mtkv.report.page import write_summaries, write_tables
from mtkv.report.summary import cell_cards, claim_rows, comparison_report, plain
from mtkv.report.tables import as_latex, claims_table, matrix_table
from mtkv.stats import cells, pairs, ranks
from mtkv.stats.claims import verdicts as claims

DOCS = Path(__file__).parents[2] / "docs/report.md"


@pytest.fixture(scope="module")
def written(full, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_summaries(full, folder)
    figures = all_figures(full)
    write_tables(full, figures, item_browser(full), folder / "tables")
    return folder


@pytest.fixture(scope="module")
def loaded(written):
    return json.loads(
        (written / "results.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )


def same(value, expected):
    if value is None:
        return expected is None or expected != expected
    return value == expected or math.isclose(value, expected)


@pytest.mark.parametrize("name", ["cells", "pairs", "matrix", "claims"])
def test_json_holds_every_row_of_the_tables(loaded, full_tree, name):
    frame = pd.read_parquet(full_tree / f"compare/{name}.parquet")
    assert len(loaded[name]) == len(frame)
    for row, expected in zip(loaded[name], frame.to_dict("records"), strict=True):
        assert all(same(row[key], value) for key, value in expected.items())


def test_every_key_is_documented(loaded):
    """docs/report.md names each key and column of results.json in the row of its table."""
    text = DOCS.read_text(encoding="utf-8")
    schema = text[text.index('`results.json` (`"schema"') :]
    rows = [line.split(" | ", 1) for line in schema.splitlines() if line.startswith("| `")]
    said = {key: set(re.findall(r"`(\w+)`", holds)) for head, holds in rows for key in re.findall(r"`(\w+)`", head)}
    assert loaded.keys() <= said.keys()
    for part in ("claims", "cells", "pairs", "matrix", "runs"):
        assert set(loaded[part][0]) <= said[part], part
    assert set(loaded["arms"]["fixed"]) | set(loaded["arms"]["fixed"]["kv"]) <= said["arms"]
    assert set(loaded["cards"]["arms/fixed/seed42"]) <= said["cards"]


def test_the_tables_of_compare_are_documented():
    text = DOCS.read_text(encoding="utf-8")
    for part, columns in {
        "cells": cells.COLUMNS,
        "claims": claims.COLUMNS,
        "pairs": pairs.COLUMNS,
        "matrix": ranks.COLUMNS,
    }.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| `{part}` | "))
        assert set(columns) <= set(re.findall(r"`(\w+)`", line)), part


def test_every_cell_leads_to_the_cards_that_made_it(loaded, full_tree, full_study):
    for cell in loaded["cells"]:
        seeds = full_study.seeds_of(cell["arm"])
        expected = {f"predictions/{cell['arm']}/seed{seed}" for seed in seeds} | {"compare"}
        if full_study.arms[cell["arm"]].training is not None:
            expected |= {f"arms/{cell['arm']}/seed{seed}" for seed in seeds}
        assert set(cell["cards"]) == expected
    for key, facts in loaded["cards"].items():
        card = (
            json.loads((full_tree / key / "card.json").read_text())
            if (full_tree / key / "card.json").is_file()
            else None
        )
        if card is not None:
            assert facts["code_digest"] == card["code_digest"]
            assert facts["git"]["revision"] == "f" * 40


def test_cards_per_dataset_belong_to_that_dataset_alone(full):
    full.cards["predictions/sft/seed42/pocket_bbh"] = {}
    try:
        assert "predictions/sft/seed42/pocket_bbh" in cell_cards(full, "sft", "pocket_bbh")
        assert "predictions/sft/seed42/pocket_bbh" in cell_cards(full, "sft", "macro")
        assert "predictions/sft/seed42/pocket_bbh" not in cell_cards(full, "sft", "pocket_gpqa")
    finally:
        del full.cards["predictions/sft/seed42/pocket_bbh"]


def test_arms_say_what_they_change_and_cost(loaded):
    assert loaded["schema"] == 1
    assert loaded["arms"]["keys"]["extends"] == "fixed"
    assert loaded["arms"]["keys"]["changes"] == ["kv.loss.lambda_v: 1 → 0"]
    assert loaded["arms"]["raw"]["cost"] == {}
    assert set(loaded["arms"]["fixed"]["cost"]["Wall time (s)"]) == {"42", "43", "44"}
    assert "fixed_shuffled · pocket_gpqa: missing" in " ".join(loaded["missing"])


def test_plain_values():
    assert [plain(v) for v in (float("nan"), float("inf"), pd.NA, None, "x", True)] == [
        None,
        None,
        None,
        None,
        "x",
        True,
    ]


def test_model_comparison_is_one_row_per_arm(written, full_tree, full_study):
    frame = pd.read_csv(written / "model_comparison.csv").set_index("arm")
    assert list(frame.index) == list(full_study.arms)
    for cell in pd.read_parquet(full_tree / "compare/cells.parquet").to_dict("records"):
        value = frame.loc[cell["arm"], cell["dataset"]]
        assert math.isnan(value) if cell["status"] != "ok" else value == pytest.approx(cell["mean"] * 100, abs=0.0051)
    pairs = (
        pd.read_parquet(full_tree / "compare/pairs.parquet")
        .query("dataset == 'macro' and baseline == 'sft'")
        .set_index("arm")
    )
    for arm in pairs.index:
        assert same(frame.loc[arm, "delta"], pairs.loc[arm, "delta"]) or frame.loc[arm, "delta"] == pytest.approx(
            pairs.loc[arm, "delta"] * 100, abs=0.0051, nan_ok=True
        )
        assert frame.loc[arm, "outcome"] == pairs.loc[arm, "outcome"]
    assert frame.loc["fixed", "Stored KV (MB)"] == 24


def test_report_in_words_has_answer_scores_differences_and_gaps(full):
    text = comparison_report(full)
    for heading in (
        "## Answer",
        "## Scores",
        "## Differences from sft",
        "## Each arm against the arm it extends",
        "## What is missing",
    ):
        assert heading in text
    assert "| sft |" in text
    assert "kv.loss.lambda_v: 1 → 0" in text
    assert "- similarity · pocket_bbh: missing (3 of 3 seeds failed: <out of memory>)" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    blocks = {line.count("|") for line in lines}
    assert min(blocks) > 5


def test_tables_are_written_in_three_formats(written, full):
    stems = {path.stem for path in (written / "tables").iterdir()}
    assert stems >= {"headline", "claims", "pairs", "matrix", "items", "figure-ablations", "figure-runs", "figure-cost"}
    for stem in stems:
        rows = list(csv.reader(io.StringIO((written / f"tables/{stem}.csv").read_text())))
        assert len({len(row) for row in rows}) == 1, stem
        latex = (written / f"tables/{stem}.tex").read_text()
        assert latex.startswith(r"\begin{tabular}")
        assert r"\toprule" in latex
        assert latex.count(r" \\" + "\n") == len(rows), stem
    assert len(matrix_table(full).rows) == len(full.matrix)


def test_latex_has_whole_rows_and_only_known_letters(written):
    for path in sorted((written / "tables").glob("*.tex")):
        text = path.read_text()
        columns = len(re.search(r"\\begin\{tabular\}\{(l r*|lr*)\}", text)[1])
        rows = [line for line in text.splitlines() if line.endswith(r" \\")]
        assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows), path.name
        assert all(len(re.findall(r"(?<!\\)[$]", row)) % 2 == 0 for row in rows), path.name
        assert not re.search(r"(?<!\\)[%#]", text), path.name
        if path.stem != "items":  # questions may be in any language
            assert {letter for letter in text if not letter.isascii()} <= set("“”’…"), path.name


def test_symbols_of_tables_have_latex():
    assert (
        as_latex(["a"], [["±1 → 2 · ≠ × –"]]).splitlines()[4] == r"$\pm$1 $\rightarrow$ 2 $\cdot$ $\neq$ $\times$ -- \\"
    )


def test_undecided_claims_say_what_could_have_been_seen(full):
    claims = full.claims.assign(mdd=2.5, twin_delta=float("nan"), twin_low=float("nan"), twin_high=float("nan"))
    claims.loc[claims["claim"] == "kv_beats_sft", ["twin_delta", "twin_low", "twin_high"]] = [1.25, -0.5, 3.0]
    import dataclasses

    rows = {row.id: row for row in claim_rows(dataclasses.replace(full, claims=claims))}
    for claim in claims.to_dict("records"):
        shown = rows[claim["claim"]].detectable
        assert (shown != "") == (claim["verdict"] == "undecided")
        if shown and claim["kind"] == "difference":
            assert shown == "2.5 pts"
    assert rows["kv_beats_sft"].twin == "+1.2 pts [−0.5, +3.0]"
    assert rows["training_beats_raw"].twin == ""
    equal = claims.head(1).assign(kind="equivalent", threshold=2.0)
    assert claim_rows(dataclasses.replace(full, claims=equal))[0].needed == "within ±2.0 pts"
    table = claims_table(dataclasses.replace(full, claims=claims))
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_figures_come_section_by_section(full):
    figures = all_figures(full)
    places = [FIGURE_SECTIONS.index(figure.section) for figure in figures]
    assert places == sorted(places)
    assert len({figure.id for figure in figures}) == len(figures)
    for figure in figures:
        assert {len(row) for row in figure.rows} == {len(figure.header)}, figure.id
        views = {view for view, _ in figure.views}
        assert all(trace["meta"].get("view") in (views or {None}) for trace in figure.traces), figure.id
        json.dumps(figure.payload(), allow_nan=False)
