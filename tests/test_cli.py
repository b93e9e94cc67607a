"""The command `mtkv` as a user types it, on the pocket study."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mtkv.cli import app
from mtkv.config.schema import study_schema

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
    assert "gpt2 (ratio-ridge-" in result.output
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


def test_schema_writes_the_schema(run, tmp_path):
    assert run("schema", tmp_path / "schema.json").exit_code == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == study_schema()


def test_export_writes_every_row_as_one_line(run, tmp_path):
    rows = pd.DataFrame({"id": ["a", "b"], "prompt": ["问：1+1\\n", "x"], "target": [" 2", " y"]})
    rows.to_parquet(tmp_path / "rows.parquet")
    assert run("export", tmp_path / "rows.parquet", "--jsonl", tmp_path / "rows.jsonl").exit_code == 0
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows.to_dict("records")
