"""The command `mtkv` as a user types it, on the pocket study."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from mtkv.cli import app
from mtkv.config.schema import study_schema
from mtkv.provenance.files import write_json, write_parquet
from mtkv.study_diff.diff import diff_studies

SMALL = "data: {train_rows: 70, validation_rows: 70, calibration_rows: 140, test_items: 5}\n"


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.chdir(Path(__file__).parents[1])
    (tmp_path / "small.yaml").write_text(SMALL)

    def invoke(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})

    return invoke


def test_probe_prints_and_writes_the_table_of_the_asked_teacher(run, tmp_path):
    result = run(
        "probe", "--configfile", tmp_path / "small.yaml", "--teacher", "gpt2", "--output", tmp_path / "probe.parquet"
    )
    assert result.exit_code == 0, result.output
    table = pd.read_parquet(tmp_path / "probe.parquet")
    assert set(table["teacher"]) == {"gpt2"}
    assert (
        len(table) == 3 * 2 * 3
    )  # student layers × {key, value} × {ridge, procrustes, mean}: widths differ, so no identity
    assert (table.loc[table["method"] == "mean", "error"] == 1).all()
    ridge = table[table["method"] == "ridge"]
    assert np.isfinite(ridge["error"]).all()
    assert ridge["error"].mean() < table.loc[table["method"] == "procrustes", "error"].mean()
    assert "gpt2 (ratio-linear-" in result.output
    for error in ridge["error"]:
        assert f"{error:.3f}" in result.output


def test_wrong_teachers_and_configs_end_in_a_message(run, tmp_path):
    result = run("probe", "--teacher", "gtp2")
    assert result.exit_code == 2
    assert "gtp2" in result.output
    assert "qwen2, gpt2" in result.output
    (tmp_path / "wrong.yaml").write_text("arms: {sft: {trainin: null}}\n")
    result = run("probe", "--configfile", tmp_path / "wrong.yaml")
    assert result.exit_code == 2
    assert "arms.sft.trainin" in result.output
    assert "Traceback" not in result.output


def test_gate_has_snakemake_make_its_files_and_prints_them(run, monkeypatch, tmp_path):
    made, asked = Path("results/pocket/gate/oracle/steps7-batches3/card.json"), []
    place = {"right": 0.25, "right_se": 0.01, "other": -0.125, "other_se": 0.02, "ratio": 2.5}
    place |= {"difference": 0.375, "difference_se": 0.03}
    facts = {"map_steps": 7, "batches": 3, "batch_size": 32}
    cosines = [{"layer": 1, "kind": "key"} | place, {"layer": -1, "kind": "both"} | place]
    monkeypatch.setattr(
        "mtkv.ops.gate.subprocess.run", lambda command, **_: asked.append(command) or Done(len(asked) - 1)
    )
    monkeypatch.setattr(
        "mtkv.provenance.files.read_json", lambda path: {made: {"result": facts | {"cosines": cosines}}}[path]
    )
    small = tmp_path / "small.yaml"
    options = ("gate", "--arm", "oracle", "--steps", 7, "--batches", 3, "--configfile", small, "--profile", "there")
    result = run(*options)
    assert result.exit_code == 0, result.output
    assert asked[0][1:] == ["-m", "snakemake", "--profile", "there", "--configfile", str(small), "--", str(made)]
    lines = [line for line in result.output.splitlines() if "+0.250 ±0.010" in line]
    assert [line.split()[1:4:2] for line in lines] == [["all", "both"], ["1", "key"]]
    assert all("-0.125 ±0.020" in line and "+0.375 ±0.030" in line and "2.5" in line for line in lines)
    assert "for 7 steps" in result.output
    failed = run(*options)  # Snakemake itself has said why
    assert failed.exit_code == 1
    assert "±" not in failed.output


class Done:
    """What `subprocess.run` returns, of a command with that exit status."""

    def __init__(self, returncode):
        self.returncode = returncode


@pytest.mark.parametrize("arm", ["sft", "oracle_shuffled", "orakel"])
def test_gate_of_an_arm_without_kv_of_its_own_is_refused_before_anything_runs(run, monkeypatch, arm):
    monkeypatch.setattr("mtkv.ops.gate.subprocess.run", None)
    result = run("gate", "--arm", arm)
    assert result.exit_code == 2
    assert f"'{arm}' is no arm of study pocket that matches KV and has no control" in " ".join(
        result.output.replace("│", "").split()
    )
    assert "Traceback" not in result.output


def test_schema_writes_the_schema(run, tmp_path):
    assert run("schema", tmp_path / "schema.json").exit_code == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == study_schema()


def test_export_writes_every_row_as_one_line(run, tmp_path):
    rows = pd.DataFrame({"id": ["a", "b"], "prompt": ["问：1+1\\n", "x"], "target": [" 2", " y"]})
    rows.to_parquet(tmp_path / "rows.parquet")
    assert run("export", tmp_path / "rows.parquet", "--jsonl", tmp_path / "rows.jsonl").exit_code == 0
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows.to_dict("records")


# Two studies of one seed and two arms on ten questions; True: answered rightly.
SCORES_A = {"sft": [1, 1, 1, 0, 0, 0, 0, 0, 1, 1], "kv": [1, 0, 1, 0, 1, 0, 1, 0, 1, 0]}
SCORES_B = {"sft": [1, 1, 1, 1, 1, 1, 1, 0, 0, 1], "kv": [1, 0, 1, 0, 1, 0, 1, 0, 1, 0]}
DATASET = "pocket_gsm8k"


def write_compared(folder, scores, *, torch="2.9", code="aa", steps=10, rows="11", questions=None):
    """What the diff reads of a finished study."""
    items = [
        (arm, 42, DATASET, f"{DATASET}-{i}", str(i), float(r)) for arm, own in scores.items() for i, r in enumerate(own)
    ]
    table = pd.DataFrame(items, columns=["arm", "seed", "dataset", "item", "cluster", "correct"])
    write_parquet(folder / "compare/items.parquet", table)
    write_json(folder / "compare/study.json", {"study": folder.name, "arms": {"kv": {"training": {"steps": steps}}}})
    card = {"stage": "data", "packages": {"torch": torch}, "code_digest": code, "result": {"hashes": {"train": rows}}}
    write_json(folder / "data/card.json", card)
    asked = questions or [f"What is {i} + {i}?" for i in range(10)]
    ids = [f"{DATASET}-{i}" for i in range(10)]
    test = pd.DataFrame({"id": ids, "question": asked, "choices": [[]] * 10, "gold": -1, "answer": "2"})
    write_parquet(folder / f"data/test/{DATASET}.parquet", test)
    return folder


def test_diff_says_what_differs_and_pairs_the_items(run, tmp_path):
    a = write_compared(tmp_path / "a", SCORES_A)
    b = write_compared(tmp_path / "b", SCORES_B, torch="2.10", code="bb", steps=20, rows="22")
    result = run("diff", a, b, "--json", tmp_path / "diff.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "diff.json").read_text())
    assert found["same"] is False
    assert found["config"][1:] == [{"path": "arms.kv.training.steps", "a": "10", "b": "20"}]
    assert found["data"] == [{"what": "data.hashes.train", "a": "11", "b": "22"}]
    assert found["versions"] == [{"what": "package torch", "a": "2.9", "b": "2.10"}]
    assert found["code"] == [{"what": "code of data", "a": "aa", "b": "bb"}]
    rows = {(row["arm"], row["dataset"]): row for row in found["scores"]}
    sft, before, after = rows["sft", DATASET], np.array(SCORES_A["sft"]), np.array(SCORES_B["sft"])
    assert (sft["mean_a"], sft["mean_b"], sft["n_items"]) == (before.mean(), after.mean(), 10)
    assert sft["delta"] == pytest.approx((after - before).mean())
    gained, lost = int((after > before).sum()), int((after < before).sum())
    assert sft["p"] == pytest.approx(stats.binomtest(gained, gained + lost).pvalue, abs=1e-12)
    interval = stats.bootstrap((after - before,), np.mean, method="BCa", rng=0).confidence_interval
    assert (sft["low"], sft["high"]) == pytest.approx((interval.low, interval.high), abs=0.11)
    assert rows["kv", DATASET]["delta"] == 0
    for shown in ("arms.kv.training.steps", "package torch", "code of data", "+30.0", "0.375"):
        assert shown in result.output, shown
    assert "│ kv" not in result.output.split("scores:")[1]


def test_diff_of_a_study_and_its_copy_is_nothing(run, tmp_path):
    a, b = (write_compared(tmp_path / name / "one", SCORES_A) for name in "ab")
    result = run("diff", a, b)
    assert "Nothing differs." in result.output
    assert "scores: no difference in any of 4 cells" in result.output


@pytest.mark.parametrize("change", [{"torch": "3"}, {"code": "bb"}, {"rows": "2"}, {"steps": 1}])
def test_one_change_is_a_difference(tmp_path, change):
    a, b = write_compared(tmp_path / "a", SCORES_A), write_compared(tmp_path / "b", SCORES_A, **change)
    assert diff_studies(a, a, resamples=50).same
    assert not diff_studies(a, b, resamples=50).same


def test_diff_pairs_no_items_whose_questions_differ(run, tmp_path):
    questions = [f"What is {i} + {i + (i > 6)}?" for i in range(10)]
    a = write_compared(tmp_path / "a", SCORES_A)
    b = write_compared(tmp_path / "b", SCORES_B, questions=questions)
    assert run("diff", a, b, "--json", tmp_path / "diff.json").exit_code == 0
    found = json.loads((tmp_path / "diff.json").read_text())
    row = found["scores"][0]
    assert (row["n_items"], row["only_a"], row["only_b"]) == (7, 3, 3)
    assert row["delta"] == pytest.approx(4 / 7)
    assert found["data"] == [{"what": f"other questions in {DATASET}", "a": "0", "b": "3"}]


def test_diff_refuses_what_is_no_finished_study(run, tmp_path):
    a = write_compared(tmp_path / "a", SCORES_A)
    (tmp_path / "begun/arms").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    said = {"begun": "no comparison yet", "other": "not a study's results", "nowhere": "no such folder"}
    for name, message in said.items():
        result = run("diff", a, tmp_path / name)
        assert result.exit_code == 2
        assert message in result.output
        assert "Traceback" not in result.output


def test_diff_shows_markup_in_names_as_text(run, tmp_path):
    a = write_compared(tmp_path / "a", SCORES_A, torch="[red]old[/red]")
    b = write_compared(tmp_path / "b", SCORES_A, torch="[/]new")
    result = run("diff", a, b)
    assert "[red]old[/red]" in result.output
    assert "[/]new" in result.output


def test_diff_needs_no_torch(tmp_path):
    a = write_compared(tmp_path / "a", SCORES_A)
    script = f"from mtkv.cli import app\nimport sys\napp(['diff', {str(a)!r}, {str(a)!r}], standalone_mode=False)\n"
    done = subprocess.run(
        [sys.executable, "-c", script + "print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def mtkv(encoding, *arguments):
    """What the command prints on a terminal of this encoding."""
    command = [sys.executable, "-c", "from mtkv.cli import app; app()", *map(str, arguments)]
    folder, environment = Path(__file__).parents[1], os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    assert b"UnicodeEncodeError" not in done.stderr, done.stderr.decode(encoding)
    return done.returncode, done.stdout.decode(encoding)


@pytest.mark.parametrize("encoding", ["gbk", "iso-8859-1", "ascii"])
def test_a_terminal_that_is_not_utf8_shows_the_same_numbers(tmp_path, encoding):
    a = write_compared(tmp_path / "甲", SCORES_B)
    b = write_compared(tmp_path / "乙", SCORES_A, torch="é")
    _, usual = mtkv("utf-8", "diff", a, b)
    code, shown = mtkv(encoding, "diff", a, b)
    assert code == 0
    assert "−30.0" in usual
    assert "-30.0" in shown.replace("−", "-")
    words = str.maketrans(dict.fromkeys("甲乙é", "?") | {"−": "-", "Δ": "delta", "—": "-", "≥": ">=", "…": "..."})
    frame = str.maketrans(dict.fromkeys("┏┳┓┃┡╇┩│├┼┤└┴┘━─", " ") | dict.fromkeys("|+-", " "))
    assert shown.translate(words).translate(frame).split() == usual.translate(words).translate(frame).split()


def test_doctor_and_status_speak_on_a_terminal_that_is_not_utf8():
    marks = {line.split(" ")[0] for line in mtkv("gbk", "doctor")[1].splitlines()}
    assert "v" in marks
    assert "?" not in marks
    code, shown = mtkv("iso-8859-1", "status")
    assert code == 0
    assert "jobs done" in shown
