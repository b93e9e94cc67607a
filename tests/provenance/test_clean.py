"""Cleaning removes what is of no use, and nothing that somebody writes to or could go on from."""

import json

import pytest

from mtkv.checkpointing.clean import asked_digest, clean, survey
from mtkv.checkpointing.lock import WriterLock
from mtkv.checkpointing.store import Checkpoint
from mtkv.provenance.digest import file_digest

IDENTITY = {
    "stage": "arms",
    "wildcards": {"arm": "sft"},
    "code": "c",
    "config": {"rate": 0.1},
    "inputs": {},
    "versions": {},
}
ASKED = {asked_digest(IDENTITY)}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "checkpoints"


def leave(root, finish=False, study="s", outputs=("results/model",), **changes):
    """A checkpoint with one step of 1,000 bytes, its writer gone."""
    run = {"study": study, "stage": "arms", "arm": "sft", "outputs": list(outputs)}
    with Checkpoint(root, IDENTITY | changes, run) as checkpoint:
        checkpoint.save(1, lambda folder: (folder / "a.bin").write_bytes(b"x" * 1000))
        if finish:
            checkpoint.finish(keep=1)
    return checkpoint.folder


def output(root, *names):
    for name in names:
        path = root.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def kinds(root, asked=ASKED):
    return {found.path.name: found.kind for found in survey(root, "s", asked)}


def test_of_finished_jobs_those_go_whose_outputs_are_all_there(root):
    done = leave(root, finish=True, outputs=("results/model", "results/card.json"))
    output(root, "results/model")
    assert kinds(root) == {done.name: "resumable"}, "an output is missing: the job would go on from its last step"
    output(root, "results/card.json")
    size = sum(path.stat().st_size for path in done.rglob("*") if path.is_file())
    (removed,) = clean(root, "s", ASKED)
    assert (removed.path, removed.kind) == (done, "done")
    assert removed.bytes == size > 1000
    assert list(root.iterdir()) == []


def test_an_unfinished_job_stays_even_when_outputs_of_that_name_exist(root):
    folder = leave(root)
    output(root, "results/model")
    assert clean(root, "s", ASKED, stale=True) == []
    assert kinds(root) == {folder.name: "resumable"}


def test_what_no_job_would_resume_goes_only_when_asked(root, capsys):
    source = root.parent / "rows"
    source.write_text("rows")
    there = {str(source): file_digest(source)}
    resumable = leave(root, inputs=there)
    changed = leave(root, inputs={str(source): "another digest"})
    gone = leave(root, inputs={str(source.with_name("not made yet")): "digest"})
    code, config = leave(root, code="d"), leave(root, config={"rate": 0.2})
    versions = leave(root, versions={"torch": "0.1"})
    broken = leave(root, stage="maps")
    (broken / "manifest.json").write_text("{")
    stale = {changed, code, config, versions, broken}
    assert {name for name, kind in kinds(root).items() if kind == "stale"} == {path.name for path in stale}
    assert clean(root, "s", ASKED) == []
    assert "clean_stale_checkpoints" in capsys.readouterr().out
    assert {found.path for found in clean(root, "s", ASKED, stale=True)} == stale
    assert set(root.iterdir()) == {resumable, gone}


def test_other_studies_keep_theirs_unless_they_are_finished(root):
    other = leave(root, study="t", code="d")
    done = leave(root, study="t", finish=True, outputs=("results/other",), code="e")
    output(root, "results/other")
    assert {found.path for found in clean(root, "s", ASKED, stale=True)} == {done}
    assert kinds(root) == {other.name: "other"}


def test_a_living_writer_is_never_disturbed(root, monkeypatch):
    done = leave(root, finish=True)
    output(root, "results/model")
    with WriterLock(done / "lock.json"):
        assert kinds(root) == {done.name: "in use"}
        assert clean(root, "s", ASKED, stale=True) == []
        monkeypatch.setattr("mtkv.checkpointing.clean.is_stale", lambda lock: True)  # it comes in between
        assert kinds(root) == {done.name: "done"}
        assert clean(root, "s", ASKED, stale=True) == []
    assert (done / "manifest.json").exists()


def test_a_dry_run_and_the_log_say_the_same_and_other_folders_are_not_looked_at(root, tmp_path, capsys):
    done = leave(root, finish=True)
    output(root, "results/model")
    (root / "predictions").mkdir()
    (root / "predictions" / "a.parquet").write_bytes(b"x")
    (would,) = clean(root, "s", ASKED, dry=True)
    assert would.path == done
    assert done.exists()
    capsys.readouterr()
    clean(root, "s", ASKED, tmp_path / "clean.log")
    said = capsys.readouterr().out
    assert said == (tmp_path / "clean.log").read_text()
    assert f"removed 1 of 1 folders, {would.bytes:,} bytes" in said
    assert "arms sft of s: its outputs are written" in said
    assert [path.name for path in root.iterdir()] == ["predictions"]


def test_nothing_there_is_nothing_to_do(root):
    assert clean(root, "s", ASKED) == []


def test_what_a_job_is_asked_does_not_depend_on_inputs_and_versions():
    assert asked_digest(IDENTITY | {"inputs": {"a": "b"}, "versions": {"torch": "3"}}) in ASKED
    for field in ("stage", "wildcards", "code", "config"):
        assert asked_digest(json.loads(json.dumps(IDENTITY)) | {field: "other"}) not in ASKED
