"""Reading files of every format, and the errors of files that are absent, broken or other than they say."""

import json

import pandas as pd
import pytest
from benchmark_files import math23k_text, table

from mtkv.data.loading import DataFileError, Origin, load_origin, read_records
from mtkv.data.rows import write_jsonl
from mtkv.data.sources import SOURCES
from mtkv.provenance.digest import state_of

RECORDS = [{"a": "1", "b": "é 中"}, {"a": "2", "b": "x\ny"}]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.json", lambda path: path.write_text(json.dumps(RECORDS))),
        ("x.json", lambda path: path.write_text(json.dumps({"canary": "c", "examples": RECORDS}))),
        ("x.json", lambda path: path.write_text("\n".join(json.dumps(record, indent=1) for record in RECORDS))),
        ("x.jsonl", lambda path: path.write_text("\n\n".join(map(json.dumps, RECORDS)) + "\n")),
        ("x.jsonl", lambda path: path.write_text("\ufeff" + "\n".join(map(json.dumps, RECORDS)), encoding="utf-8")),
        ("x.csv", lambda path: table(path, RECORDS)),
        ("x.parquet", lambda path: pd.DataFrame(RECORDS).to_parquet(path)),
    ],
)
def test_every_format_gives_the_same_records(tmp_path, name, write):
    write(tmp_path / name)
    assert read_records(tmp_path / name) == RECORDS


def test_lines_of_json_end_at_line_feeds_only(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": "one\u2028two\x85"}\n', encoding="utf-8")
    assert read_records(tmp_path / "x.jsonl") == [{"a": "one\u2028two\x85"}]


def test_options_of_a_csv_stay_text(tmp_path):
    options = {"": "0", "A": "None", "B": "NA", "C": "0.50", "D": ""}
    table(tmp_path / "x.csv", [options])
    assert read_records(tmp_path / "x.csv") == [{"A": "None", "B": "NA", "C": "0.50", "D": ""}]


def test_math23k_has_objects_over_many_lines(tmp_path):
    (tmp_path / "Math_23K.json").write_text(math23k_text(3))
    assert [record["id"] for record in read_records(tmp_path / "Math_23K.json")] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", '{"a": 1', "cannot be read"),
        ("x.jsonl", '{"a": 1}\n{"a": ', "cannot be read"),
        ("x.jsonl", "", "no records"),
        ("x.json", "[1, 2]", "no mappings"),
        ("x.csv", "a,b\n1\n", "cannot be read"),
        ("x.csv", "a,b\n1,2,3\n", "cannot be read"),
        ("x.parquet", "no parquet", "cannot be read"),
        ("x.txt", "a", "unknown format"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataFileError, match=said) as error:
        read_records(tmp_path / name)
    assert name in str(error.value)


def test_not_utf_8(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataFileError, match=r"x\.jsonl"):
        read_records(tmp_path / "x.jsonl")


def test_an_absent_source_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(DataFileError) as error:
        load_origin(SOURCES["svamp"].origin, "train", tmp_path)
    for part in ("svamp", str(tmp_path / "svamp" / "SVAMP.json"), "ChilleD/SVAMP", "data.folder"):
        assert part in str(error.value)


def test_a_gated_set_names_its_page(tmp_path):
    with pytest.raises(DataFileError, match=r"https://huggingface\.co/datasets/a/b.*hf auth login"):
        load_origin(Origin("x", "a/b", gated=True), "test", tmp_path)


def test_the_hub_that_cannot_be_reached_is_one_error(monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("no route\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataFileError, match=r"svamp.*at revision abc.*ConnectionError: no route\).*data\.folder"):
        load_origin(SOURCES["svamp"].origin, "train", None, "abc")


def test_the_hub_is_asked_for_id_configuration_split_and_revision(monkeypatch):
    import datasets

    asked = []

    def load(path, name, split, revision):
        asked.append((path, name, split, revision))
        return datasets.Dataset.from_list([{"question": name}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    loaded = load_origin(Origin("x", "a/b", ("one", "two")), "dev", None, "r")
    assert loaded == {"one": [{"question": "one"}], "two": [{"question": "two"}]}
    load_origin(Origin("x", "a/b"), "dev", None)
    assert asked == [("a/b", "one", "dev", "r"), ("a/b", "two", "dev", "r"), ("a/b", None, "dev", None)]


def test_state_changes_with_every_file(tmp_path):
    assert state_of(None) == state_of(str(tmp_path / "none")) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.json").write_text("[]")
    (tmp_path / "a" / "notes.md").write_text("")
    before = state_of(str(tmp_path))
    assert [name for name, *_ in before] == ["a/x.json"]
    (tmp_path / "a" / "x.json").write_text("[ ]")
    assert state_of(str(tmp_path)) != before


def test_rows_as_lines_of_json(tmp_path):
    rows = pd.DataFrame({"id": ["a", "b"], "prompt": ["问题：\n", "é\u2028"], "prompt_end": [3, 9]})
    rows.to_parquet(tmp_path / "rows.parquet")
    assert write_jsonl(tmp_path / "rows.parquet", tmp_path / "out" / "rows.jsonl") == 2
    raw = (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8")
    assert "问题" in raw
    assert [json.loads(line) for line in raw.split("\n")[:-1]] == rows.to_dict("records")
