"""The page says what the parquet files say, escapes what comes from data, and is one self-contained file."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys

import lxml.html
import pandas as pd
import pytest

from mtkv.config.study import load_study
from mtkv.report.figures.alignment import alignment_figures
from mtkv.report.page import embedded_json
from mtkv.report.results import read_results
from mtkv.report.static_figures import Picture
from mtkv.stages.report import render

HOSTILE = "</script><img src=x onerror=alert(1)> & \u2028 \"'"


@pytest.fixture(scope="module")
def page(rendered):
    return (rendered[0] / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def document(page):
    return lxml.html.fromstring(page)


@pytest.fixture
def no_stills(monkeypatch):
    """Leave out the slow drawing where a test is not about it."""
    blank = Picture("<svg xmlns='http://www.w3.org/2000/svg'/>", b"")
    monkeypatch.setattr("mtkv.stages.report.picture", lambda *_, **__: blank)


def figure_data(document):
    return json.loads(document.get_element_by_id("data").text)


def test_every_score_cell_equals_its_parquet_row(document, tree):
    cells = pd.read_parquet(tree / "compare/cells.parquet").set_index(["arm", "dataset"])
    seen = set()
    for td in document.xpath("//table[@id='scores']//td"):
        key = (td.getparent().get("data-arm"), td.get("data-column"))
        seen.add(key)
        row = cells.loc[key]
        if row["status"] != "ok":
            assert td.text_content().strip() == "missing"
            continue
        assert float(td.xpath(".//button")[0].text) == pytest.approx(row["mean"] * 100, abs=0.0501)
        assert float(td.get("data-value")) == pytest.approx(row["mean"] * 100)
        low, high = map(float, td.xpath(".//small[@class='ci']")[0].text.split("–"))
        assert (low, high) == pytest.approx((row["low"] * 100, row["high"] * 100), abs=0.0501)
        assert f"n {int(row['n_items'])}" in td.text_content()
        assert bool(td.xpath(".//*[@class='tie']")) == bool(row["tied"])
    assert seen == set(cells.index)


def test_seed_values_equal_the_items(document, tree):
    items = pd.read_parquet(tree / "compare/items.parquet")
    means = items.groupby(["arm", "dataset", "seed"])["correct"].mean()
    for td in document.xpath("//table[@id='scores']//td[@data-column!='macro']"):
        arm, dataset = td.getparent().get("data-arm"), td.get("data-column")
        for seed, value in json.loads(td.get("data-seeds")).items():
            expected = means.get((arm, dataset, int(seed)))
            assert (value is None) == (expected is None)
            if value is not None:
                assert value == pytest.approx(expected * 100)


def test_claims_show_verdict_and_numbers(document, tree):
    for claim in pd.read_parquet(tree / "compare/claims.parquet").to_dict("records"):
        row = document.get_element_by_id(f"claim-{claim['claim']}").text_content()
        assert claim["verdict"] in row
        assert claim["statement"] in row
        assert claim["why"] in row
        digits = 0 if claim["kind"] == "datasets_improved" else 1
        assert f"{claim['delta']:.{digits}f}" in row


def test_waterfall_bars_sum_to_the_macro_delta(document, tree, study):
    pairs = pd.read_parquet(tree / "compare/pairs.parquet")
    macro = (
        pairs.query("dataset == 'macro' and baseline == 'sft'").dropna(subset="delta").set_index("arm")["delta"] * 100
    )
    waterfall = next(f for f in figure_data(document)["figures"] if f["id"] == "waterfall")
    assert {trace["meta"]["arm"] for trace in waterfall["traces"]} == set(macro.index)
    for trace in waterfall["traces"]:
        assert trace["measure"] == ["relative"] * len(study.datasets) + ["total"]
        assert sum(trace["y"][:-1]) == pytest.approx(macro[trace["meta"]["arm"]], abs=1e-6)


def test_missing_cells_are_visible_and_named(document, rendered):
    lines = document.xpath("//*[@id='missing']//li/text()")
    assert "similarity · pocket_bbh: missing (3 of 3 seeds failed: <out of memory>)" in lines
    assert rendered[1]["missing_cells"] == lines
    bar = next(
        t
        for f in figure_data(document)["figures"]
        for t in f["traces"]
        if t["type"] == "bar" and t["name"] == "similarity"
    )
    assert [y is None for y in bar["y"]] == [False, False, True, False, False, False, False, True]


def test_sections_come_in_order_and_every_figure_has_text(document):
    ids = document.xpath("//main/section/@id")
    assert ids == [
        "answer",
        "headline",
        "plots",
        "where",
        "ablations",
        "training",
        "routing",
        "alignment",
        "cost",
        "items",
        "provenance",
        "methods",
    ]
    figures = document.xpath("//figure")
    drawn = {f["id"] for f in figure_data(document)["figures"]}
    assert {f.get("data-figure") for f in figures} == drawn
    assert drawn >= {
        "bars",
        "radar",
        "heatmap",
        "waterfall",
        "forest",
        "curves",
        "kv_and_ce",
        "routing_steps",
        "routing_datasets",
        "probe",
        "cost",
    }
    for figure in figures:
        assert len(figure.xpath("./figcaption")[0].text_content()) > 30
        assert figure.xpath(".//details//tbody/tr")


def test_one_copy_of_plotly_and_a_policy_that_names_the_scripts(page, document):
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 2
    assert page.count("* plotly.js v") == 1
    policy = document.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")[0]
    for script in scripts:
        assert "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy
    assert len(page) < 3_500_000
    outside = document.xpath("//@src | //link/@href")
    assert all(address.startswith("data:") for address in outside)


def test_same_input_gives_the_same_bytes(rendered, study, tree, tmp_path):
    render(study, tree, tmp_path / "index.html")
    for path in sorted(rendered[0].rglob("*.*")):
        assert (tmp_path / path.relative_to(rendered[0])).read_bytes() == path.read_bytes(), path.name


@pytest.mark.usefixtures("no_stills")
def test_hostile_text_stays_text(study, write_tree, tmp_path):
    config = study.model_dump()
    config["description"] = HOSTILE
    config["arms"]["sft"]["description"] = HOSTILE
    config["claims"]["kv_beats_sft"]["statement"] = HOSTILE
    hostile = load_study(config)
    root = tmp_path / "results"
    write_tree(root, hostile, items=20)
    card = root / "arms/sft/seed42/card.json"
    card.write_text(card.read_text().replace("abc123", "<\\/script><img src=x onerror=alert(2)>"))
    render(hostile, root, tmp_path / "report/index.html")
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    document = lxml.html.fromstring(page)
    assert not document.xpath("//img[@onerror] | //img[@src='x']")
    assert len(re.findall(r"</script", page)) == 5  # data, cards, items; Plotly, the page
    assert document.xpath("//p[@class='lead']")[0].text == HOSTILE
    assert HOSTILE in document.get_element_by_id("claim-kv_beats_sft").text_content()
    assert HOSTILE in document.xpath("//tr[@data-arm='sft']/th")[0].text_content()
    cards = json.loads(document.get_element_by_id("cards").text)
    assert "alert(2)" in cards["arms/sft/seed42"]["code_digest"]


def test_embedded_json_reads_back_and_has_no_markup():
    value = {"a": HOSTILE, "b": ["\u2029", "<!--", "中文"]}
    text = embedded_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


@pytest.mark.usefixtures("no_stills")
def test_page_without_logs_maps_and_cards_says_what_is_missing(study, write_tree, tmp_path):
    root = tmp_path / "results"
    write_tree(root, study, items=20, extras=False)
    facts = render(study, root, tmp_path / "report/index.html")
    assert facts["absent"] == [
        "arms/*/seed*/card.json",
        "maps/*/*.probe.parquet",
        "arms/*/seed*/training.parquet",
        "arms/*/seed*/routing.parquet",
    ]
    document = lxml.html.parse(str(tmp_path / "report/index.html")).getroot()
    for name in ("training", "routing", "alignment", "cost"):
        assert "no data for this section" in document.get_element_by_id(name).text_content()
    assert "maps/*/*.probe.parquet" in document.get_element_by_id("answer").text_content()


def test_a_missing_comparison_is_an_error(study, tmp_path):
    with pytest.raises(FileNotFoundError):
        read_results(study, tmp_path)


def test_the_report_needs_neither_torch_nor_transformers():
    code = "import sys, mtkv.stages.report; print([n for n in ('torch', 'transformers', 'mtkv.config') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_maps_are_called_by_their_teacher_until_one_has_two(study, write_tree, tmp_path):
    root = tmp_path / "results"
    write_tree(root, study, items=20)

    def probe_views(of):
        figures = {figure.id: figure for figure in alignment_figures(read_results(of, root))}
        assert [row[0] for row in figures["coverage"].rows] == sorted(
            {view.split(" · ")[0] for view, _ in figures["probe"].views}
        )
        return [view for view, _ in figures["probe"].views]

    plain = ["gpt2 · key", "gpt2 · value", "qwen2 · key", "qwen2 · value"]
    assert probe_views(study) == plain
    config = study.model_dump(mode="json")
    config["arms"]["last"] = {"extends": "fixed", "kv": {"align": {"layers": "last_aligned"}}}
    wider = load_study(config)
    old, new = (align.slug for align in wider.aligns("gpt2"))
    for suffix in ("probe.parquet", "card.json"):
        shutil.copy(root / f"maps/gpt2/{old}.{suffix}", root / f"maps/gpt2/{new}.{suffix}")
    first, second = sorted([old, new])
    assert probe_views(wider)[:3] == [f"gpt2/{first} · key", f"gpt2/{first} · value", f"gpt2/{second} · key"]
    assert probe_views(study) == plain, "a map of settings that no arm has any more is not shown"
