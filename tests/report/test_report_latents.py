"""The section of latent tokens says what the stage's files say, and studies without latents have no such section."""

import csv
import html
import io
import json
import re
from pathlib import Path

import lxml.html
import numpy as np
import pandas as pd
import pytest
import yaml

from mtkv.config.study import read_study
from mtkv.provenance.files import write_json, write_parquet
from mtkv.report.figures.all import all_figures
from mtkv.report.figures.latents import TITLES, latent_figures
from mtkv.report.results import read_results
from mtkv.stages.report import phrases, render

CONFIG = Path(__file__).parents[2] / "config/config.yaml"
DATASETS = ["pocket_gsm8k", "pocket_cmmlu"]
KEPT = ("direct", "cot", "latent", "kava", "kava_single")
TOKENS = 6
ITEMS = 40
# Share of right answers by condition: (condition, kept) of the arm that uses its latents and of the one that does not.
LEVELS = {
    ("none", 6): (0.9, 0.5),
    ("zeroed", 6): (0.3, 0.5),
    ("swapped", 6): (0.2, 0.5),
    ("truncated", 3): (0.6, 0.5),
    ("truncated", 0): (0.1, 0.5),
}
NAMES = ["none", "zeroed", "swapped", "half", "no latents"]
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def latent_study(tmp_path_factory):
    """kava-pocket with few arms and datasets."""
    overlay = CONFIG.parent / "studies/kava-pocket.yaml"
    text = yaml.safe_load(overlay.read_text(encoding="utf-8"))
    gone = {name: None for name in text["arms"] if name not in KEPT}
    changes = {"arms": gone, "claims": dict.fromkeys(text["claims"]), "datasets": DATASETS}
    path = tmp_path_factory.mktemp("overlay") / "few.yaml"
    path.write_text(yaml.safe_dump(changes | {"comparison": {"resamples": 400}}))
    return read_study(CONFIG, overlay, path)


@pytest.fixture(scope="module")
def latent_tree(latent_study, write_tree, tmp_path_factory):
    """Its results: `kava` uses its latents, the others do not; one dataset of `kava_single` lacks interventions."""
    root = tmp_path_factory.mktemp("results") / latent_study.study
    write_tree(root, latent_study, items=ITEMS)
    write_latents(root, latent_study)
    return root


@pytest.fixture(scope="module")
def found(latent_study, latent_tree):
    return read_results(latent_study, latent_tree)


def write_latents(root, study):
    generator = np.random.default_rng(1)
    for arm in study.latent_arms():
        for seed in study.seeds_of(arm):
            folder = root / f"latents/{arm}/seed{seed}"
            frames = [
                answers(dataset, condition, kept, levels[arm != "kava"], generator)
                for dataset in study.datasets
                for (condition, kept), levels in LEVELS.items()
                if condition == "none" or (arm, dataset) != ("kava_single", "pocket_cmmlu")
            ]
            write_parquet(folder / "accuracy.parquet", pd.concat(frames))
            write_parquet(folder / "decoded.parquet", pd.concat([decoded(name) for name in study.datasets]))
            write_parquet(folder / "kept.parquet", kept_table(arm, seed))
            passes = {name: 7.5 + i for i, name in enumerate(study.datasets)}
            write_json(folder / "card.json", {"result": {"passes_per_question": passes}})


def answers(dataset, condition, kept, level, generator):
    ids = [f"{dataset}-{i:03d}" for i in range(ITEMS)]
    correct = (generator.random(ITEMS) < level).astype(float)
    order = generator.permutation(ITEMS)
    frame = pd.DataFrame({"dataset": dataset, "condition": condition, "kept": kept, "item": ids, "cluster": ids})
    return frame.assign(correct=correct).iloc[order]


def decoded(dataset):
    rows = []
    for item in (None, "q1"):
        for slot in range(1, TOKENS + 1):
            for rank in (1, 2):
                token = HOSTILE if (slot, rank) == (2, 1) else f" {dataset[7]}{slot}{rank}"
                rows.append(
                    (dataset, item, f"Why {HOSTILE}?" if item else None, slot, rank, rank, token, 0.6 / rank, 0.75)
                )
    return pd.DataFrame(
        rows, columns=["dataset", "item", "question", "slot", "rank", "token_id", "token", "probability", "first"]
    )


def kept_table(arm, seed):
    """Two layers, two heads, ten rows: latent 1 at the beginning, latent 2 in the middle for half of them, the others nowhere."""
    names = ["teacher", "layer", "slot", "tenth", "count", "place", "rows", "heads", "chain_tokens", "short"]
    rows = []
    if arm != "latent":
        for layer in (0, 3):
            rows += [("t", layer, 1, 0, 12, 0.05, 10, 2, 4.5, 0.9), ("t", layer, 1, 9, 8, 0.95, 10, 2, 4.5, 0.9)]
            rows += [("t", layer, 2, 4 + (seed == 43), 10, 0.5, 10, 2, 4.5, 0.9)]
    return pd.DataFrame(rows, columns=names)


def figure(found, name):
    return {figure.id: figure for figure in latent_figures(found)}[name]


def mean_of(root, study, arm, name, dataset, seeds=None):
    frames = [pd.read_parquet(root / f"latents/{arm}/seed{s}/accuracy.parquet") for s in seeds or study.seeds_of(arm)]
    frame = pd.concat(frames)
    condition, kept = list(LEVELS)[NAMES.index(name)]
    part = frame[(frame["condition"] == condition) & (frame["kept"] == kept) & (frame["dataset"] == dataset)]
    return part["correct"].mean()


def test_bars_are_the_means_of_the_files_and_macro_those_of_the_datasets(found, latent_study, latent_tree):
    drawn = figure(found, "latent_interventions")
    arms = ["latent", "kava", "kava_single"]
    for name in NAMES:
        for dataset in DATASETS:
            (trace,) = [t for t in drawn.traces if t["offsetgroup"] == name and t["meta"]["view"] == dataset]
            expected = [100 * mean_of(latent_tree, latent_study, arm, name, dataset) for arm in arms]
            if dataset == "pocket_cmmlu" and name != "none":
                assert trace["y"][2] is None
                expected[2] = None
            assert trace["meta"]["points"]["arm"] == arms
            assert trace["y"] == pytest.approx(expected)
            for seed in latent_study.seeds:
                known = 100 * mean_of(latent_tree, latent_study, "kava", name, dataset, [seed])
                assert trace["meta"]["by_seed"]["seeds"][str(seed)][1] == pytest.approx(known)
        (macro,) = [t for t in drawn.traces if t["offsetgroup"] == name and t["meta"]["view"] == "macro"]
        parts = [mean_of(latent_tree, latent_study, "kava", name, dataset) for dataset in DATASETS]
        assert macro["y"][1] == pytest.approx(100 * np.mean(parts))
        assert (macro["y"][2] is None) == (name != "none")


def test_differences_are_paired_by_question_over_seeds(found, latent_study, latent_tree):
    """The interval against a plain normal one of the per-question differences."""
    drawn = figure(found, "latent_interventions")
    rows = [dict(zip(drawn.header, row, strict=True)) for row in drawn.rows]
    for name in NAMES[1:]:
        tables = [
            pd.read_parquet(latent_tree / f"latents/kava/seed{seed}/accuracy.parquet").set_index(["dataset", "item"])
            for seed in latent_study.seeds
        ]
        condition, kept = list(LEVELS)[NAMES.index(name)]
        apart = sum(
            t[(t["condition"] == condition) & (t["kept"] == kept)]["correct"] - t[t["condition"] == "none"]["correct"]
            for t in tables
        ) / len(tables)
        apart = apart.loc["pocket_gsm8k"]
        (row,) = [r for r in rows if (r["Arm"], r["Dataset"], r["Latents"]) == ("kava", "pocket_gsm8k", TITLES[name])]
        delta, low, high = (
            float(n) for n in re.findall(r"[+-]?\d+\.\d", row["Minus “as they are” (points)"].replace("−", "-"))
        )
        assert delta == pytest.approx(100 * apart.mean(), abs=0.051)
        half = 196 * apart.std() / np.sqrt(len(apart))
        assert low < delta < high
        assert (high - low) / 2 == pytest.approx(half, rel=0.2)
        assert row["n"] == str(ITEMS)
        each = [float(n) for n in row["By seed"].replace("−", "-").split(", ")]
        expected = [
            mean_of(latent_tree, latent_study, "kava", name, "pocket_gsm8k", [seed])
            - mean_of(latent_tree, latent_study, "kava", "none", "pocket_gsm8k", [seed])
            for seed in latent_study.seeds
        ]
        assert each == pytest.approx([100 * value for value in expected], abs=0.051)


def test_the_caption_names_who_needs_its_own_latents(found):
    said = figure(found, "latent_interventions").caption
    assert "Clearly worse on the macro average with the latents of another question: kava." in said


def test_decoded_tokens_are_those_of_the_file(found):
    drawn = figure(found, "latent_tokens")
    trace = drawn.traces[0]
    assert [view for view, _ in drawn.views][:2] == ["latent · 42", "latent · 43"]
    assert trace["z"][0] == [60.0, 60.0]
    assert [html.unescape(shown) for shown in trace["text"][0]] == ["␣g11", "␣c11"]
    assert html.unescape(trace["text"][1][0]) == HOSTILE[:11] + "…"
    everything, single = (next(row for row in drawn.rows if row[3].startswith(kind)) for kind in ("all", "q1: Why"))
    assert everything == ["latent", "42", "pocket_gsm8k", "all", "1", "␣g11 60, ␣g12 30", "75"]
    assert single[:5] == ["latent", "42", "pocket_gsm8k", f"q1: Why {HOSTILE}?", "1–6"]
    assert single[5] == f"␣g11 60, {HOSTILE[:11]}… 60, " + ", ".join(f"␣g{slot}1 60" for slot in range(3, 7))
    assert len(drawn.rows) == 3 * 2 * len(DATASETS) * (TOKENS + 1)


def test_kept_places_are_shares_of_each_latents_tokens(found):
    drawn = figure(found, "latent_kept")
    assert [view for view, _ in drawn.views] == ["kava · t", "kava_single · t"]
    z = drawn.traces[0]["z"]
    assert z[0] == pytest.approx([60, 0, 0, 0, 0, 0, 0, 0, 0, 40])
    assert z[1] == pytest.approx([0, 0, 0, 0, 50, 50, 0, 0, 0, 0])  # one tenth in each seed
    assert z[2] == [None] * 10
    rows = [row for row in drawn.rows if row[0] == "kava"]
    assert rows[0] == ["kava", "t", "1", "41", "100", "4.5", "90"]  # 0.6·5 + 0.4·95
    assert rows[1][2:5] == ["2", "50", "50"]
    assert rows[2][2:5] == ["3", "—", "0"]


def test_passes_are_those_of_the_cards(latent_study, latent_tree, found):
    def passes(results):
        drawn = {figure.id: figure for figure in latent_figures(results)}["latent_cost"]
        return {row[0]: (row[1], row[2]) for row in drawn.rows}

    assert passes(found) == dict.fromkeys(("latent", "kava", "kava_single"), ("6", "8.0"))
    facts = {"datasets": {name: {"passes_per_question": 20.0} for name in DATASETS}}
    cards = found.cards | {f"predictions/cot/seed{seed}": {"result": facts} for seed in (42, 43)}
    cards |= {
        f"predictions/kava/seed42/{name}": {"result": {"datasets": {name: {"passes_per_question": 4.0}}}}
        for name in DATASETS
    }
    cards |= {"predictions/direct/seed42": {"result": {"datasets": {DATASETS[0]: {"passes_per_question": 3.0}}}}}
    changed = read_results(latent_study, latent_tree)
    object.__setattr__(changed, "cards", cards)
    assert passes(changed) == passes(found) | {"cot": ("0", "20.0"), "kava": ("6", "6.0")}  # direct: not every dataset


def test_the_section_is_on_the_page_with_its_files_and_hostile_text_stays_text(latent_study, latent_tree, tmp_path):
    render(latent_study, latent_tree, tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    document = lxml.html.fromstring(page)
    sections = document.xpath("//main/section/@id")
    assert sections[sections.index("alignment") + 1] == "latents"
    assert document.xpath("//nav//a[@href='#latents']")[0].text_content() == "Latent tokens"
    drawn = {"latent_interventions", "latent_tokens", "latent_kept", "latent_cost"}
    assert set(document.xpath("//section[@id='latents']/figure/@data-figure")) == drawn
    assert HOSTILE not in page
    assert not document.xpath("//img[@src='x']")
    for name in drawn:
        text = (tmp_path / f"tables/figure-{name}.csv").read_text(encoding="utf-8")
        assert len(list(csv.reader(io.StringIO(text)))) > 2
        assert list((tmp_path / "figures").glob(f"{name}*.svg"))
    cards = json.loads(document.get_element_by_id("cards").text)
    assert "latents/kava/seed42" in cards


def test_a_study_without_latents_has_no_section_and_reads_nothing(study, tree):
    results = read_results(study, tree)
    assert results.latents is None
    assert not [name for name in results.absent if "latents" in name]
    assert not [figure for figure in all_figures(results) if figure.section == "latents"]


def test_lost_files_are_named(latent_study, write_tree, tmp_path):
    write_tree(tmp_path, latent_study, items=5, extras=False)
    results = read_results(latent_study, tmp_path)
    assert {f"latents/*/seed*/{name}.parquet" for name in ("accuracy", "decoded", "kept")} <= set(results.absent)
    assert latent_figures(results) == []


def test_figures_are_whole_and_plain_json(found):
    for one in latent_figures(found):
        assert {len(row) for row in one.rows} == {len(one.header)}, one.id
        views = {view for view, _ in one.views}
        assert all(trace["meta"].get("view") in (views or {None}) for trace in one.traces), one.id
        json.dumps(one.payload(), allow_nan=False)


def test_a_run_of_which_nothing_could_be_answered_draws_nothing_of_it(latent_study, write_tree, tmp_path):
    """What the stage writes when every dataset fails, and for an arm without KV."""
    write_tree(tmp_path, latent_study, items=5)
    write_latents(tmp_path, latent_study)
    for arm in latent_study.latent_arms():
        for seed in latent_study.seeds_of(arm):
            folder = tmp_path / f"latents/{arm}/seed{seed}"
            for name in ("accuracy", "kept"):
                write_parquet(folder / f"{name}.parquet", pd.read_parquet(folder / f"{name}.parquet").iloc[:0])
            write_parquet(folder / "decoded.parquet", pd.DataFrame({"dataset": []}))
    assert [one.id for one in latent_figures(read_results(latent_study, tmp_path))] == ["latent_cost"]


def test_a_chinese_reader_sees_no_english(found):
    known = phrases(latent_figures(found), names={*found.arms, *found.datasets})
    names = {*found.arms, *found.datasets, "t", "KV", "macro", "n", "extra", "br"}
    left = set()
    for one in latent_figures(found):
        for said in one.texts():
            if "script" in said or "␣" in said:
                continue  # what the model says
            shown = re.sub(r"<[^>]*>|%?\{[^}]*\}", " ", html.unescape(known.get(said, said).replace("_<br>", "_")))
            left |= set(re.findall(r"[A-Za-z_][\w.]*", shown)) - names
    assert left == set()
