"""What was saved is there whole after any death of the writer, and only for the job it belongs to."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtkv.checkpointing import store as checkpoints
from mtkv.checkpointing.identity import ManifestError, job_identity, job_run
from mtkv.checkpointing.lock import LockedError
from mtkv.checkpointing.store import Checkpoint, checkpoint_folder, is_complete, newest_step, steps
from mtkv.provenance import files
from mtkv.provenance.digest import digest_of, file_digest
from mtkv.provenance.files import DiskFullError, read_json

IDENTITY = {"stage": "arms", "config": {"rate": 0.1, "layers": [0, 1]}, "code": "c", "seed": 1}
RUN = {"study": "s", "stage": "arms", "arm": "sft", "seed": "1"}


def state(number):
    """What a writer saves at `number`: two files, one in a folder of its own."""
    return {"a.bin": bytes([number % 251]) * 5000, "inner/b.txt": str(number).encode()}


def writing(number):
    def write(folder):
        for name, content in state(number).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    return write


def read(step):
    return {str(path.relative_to(step)): path.read_bytes() for path in step.rglob("*") if path.is_file()}


@pytest.fixture
def checkpoint(tmp_path):
    with Checkpoint(tmp_path, IDENTITY, RUN) as opened:
        yield opened


def test_the_folder_says_what_it_holds_and_the_newest_steps_stay(checkpoint, tmp_path):
    assert checkpoint.folder == tmp_path / digest_of(IDENTITY) == checkpoint_folder(tmp_path, IDENTITY)
    manifest = read_json(checkpoint.folder / "manifest.json")
    assert (manifest["identity"], manifest["run"]) == (IDENTITY, RUN)
    assert manifest["versions"]["python"].startswith("3.")
    assert checkpoint.newest() is None
    for number in (5, 10, 200, 123456789):
        assert checkpoint.save(number, writing(number)) == checkpoint.newest()
        assert {k: v for k, v in read(checkpoint.newest()).items() if k != "complete.json"} == state(number)
    assert [path.name for path in steps(checkpoint.folder).values()] == ["step-00000200", "step-123456789"]


def damage_nothing_but_the_end(step):
    (step / "complete.json").unlink()


def damage_cut(step):
    os.truncate(step / "a.bin", 4999)


def damage_bit(step):
    content = bytearray((step / "a.bin").read_bytes())
    content[1234] ^= 1
    (step / "a.bin").write_bytes(content)


def damage_missing(step):
    (step / "inner/b.txt").unlink()


def damage_list(step):
    (step / "complete.json").write_text("[]")


@pytest.mark.parametrize("damage", [damage_nothing_but_the_end, damage_cut, damage_bit, damage_missing, damage_list])
def test_a_damaged_step_is_passed_over_and_made_anew(checkpoint, damage):
    for number in (1, 2):
        checkpoint.save(number, writing(number))
    damage(checkpoint.newest())
    assert checkpoint.newest().name == "step-00000001"
    assert list(checkpoint.intact()) == [1]
    checkpoint.save(2, writing(2))
    assert checkpoint.newest().name == "step-00000002"


def test_steps_of_a_line_that_was_not_resumed_from_go(checkpoint):
    for number in (10, 20):
        checkpoint.save(number, writing(number))
    damage_bit(checkpoint.newest())
    checkpoint.save(15, writing(15))  # would be counted out by a broken 20 otherwise
    assert list(steps(checkpoint.folder)) == [10, 15]


def test_parts_all_stay(tmp_path):
    with Checkpoint(tmp_path, IDENTITY, RUN, keep=None) as checkpoint:
        for number in (4, 0, 2):
            checkpoint.save(number, writing(number))
        assert list(checkpoint.intact()) == [0, 2, 4]


def test_another_job_has_another_folder_and_a_folder_of_another_job_is_refused(checkpoint, tmp_path):
    other = IDENTITY | {"config": {"rate": 0.2, "layers": [0, 1]}}
    checkpoint.save(1, writing(1))
    with Checkpoint(tmp_path, other, RUN) as opened:
        assert opened.newest() is None
    shutil.rmtree(opened.folder)
    shutil.copytree(checkpoint.folder, opened.folder, ignore=shutil.ignore_patterns("lock.json"))
    with pytest.raises(ManifestError, match=r"config\.rate is 0\.1 there and 0\.2 now.*delete it"):
        opened.__enter__()
    assert not (opened.folder / "lock.json").exists()
    (opened.folder / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match=r"cannot be read"):
        opened.__enter__()


def test_a_second_writer_is_refused_and_touches_nothing(checkpoint, tmp_path):
    (checkpoint.folder / ".step-00000001.1.tmp").mkdir()  # the first is in the middle of a save
    with pytest.raises(LockedError, match=rf"{checkpoint.folder} is being written by pid {os.getpid()}"):
        Checkpoint(tmp_path, IDENTITY, RUN).__enter__()
    assert (checkpoint.folder / ".step-00000001.1.tmp").exists()


def test_inside_a_slurm_job_a_living_writer_is_given_time_to_leave(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setattr(checkpoints, "SLURM_PATIENCE", 1.5)
    start = time.monotonic()
    with pytest.raises(LockedError):
        Checkpoint(tmp_path, IDENTITY, RUN).__enter__()
    assert time.monotonic() - start > 1.5


def test_a_writer_whose_lock_was_taken_over_cannot_save(checkpoint):
    checkpoint.save(1, writing(1))

    def write_and_lose(folder):
        writing(2)(folder)
        lock = checkpoint.folder / "lock.json"
        facts = json.loads(lock.read_text()) | {"token": "another", "pid": 4711}
        lock.unlink()
        lock.write_text(json.dumps(facts))

    with pytest.raises(LockedError, match="taken over by pid 4711"):
        checkpoint.save(2, write_and_lose)
    assert list(steps(checkpoint.folder)) == [1]
    with pytest.raises(LockedError):
        checkpoint.finish()
    (checkpoint.folder / "lock.json").unlink()


def test_a_full_disk_loses_nothing(checkpoint, monkeypatch):
    checkpoint.save(1, writing(1))

    def overflow(folder):
        writing(2)(folder)
        (folder / "c.bin").symlink_to("/dev/full")
        (folder / "c.bin").write_bytes(b"x" * 100_000)

    with pytest.raises(DiskFullError, match="no space left") as caught:
        checkpoint.save(2, overflow)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=999))
    with pytest.raises(DiskFullError, match=r"1,000 bytes are needed, 999 bytes are free.*step-00000002"):
        checkpoint.save(2, lambda folder: pytest.fail("written"), needed=1000)
    assert [path.name for path in checkpoint.folder.iterdir() if "step" in path.name] == ["step-00000001"]
    assert is_complete(checkpoint.newest())


def test_progress_is_written_at_most_once_a_second_and_at_the_end(checkpoint):
    path = checkpoint.folder / "progress.json"
    checkpoint.progress(3, 10, "rows", loss=float("nan"), gpu_memory_mb=5.5)
    first = read_json(path)
    assert first | {"done": 3, "total": 10, "unit": "rows", "loss": None, "gpu_memory_mb": 5.5} == first
    assert {"started", "updated"} <= set(first)
    checkpoint.progress(4, 10, "rows")
    assert read_json(path) == first
    checkpoint.progress(10, 10, "rows")
    assert read_json(path)["done"] == 10
    assert read_json(path)["done_at_start"] == 3


def test_a_finished_stage_leaves_little_and_begins_anew(checkpoint, tmp_path):
    checkpoint.save(1, writing(1))
    checkpoint.note_resume(1)
    checkpoint.note_resume(7)
    (checkpoint.folder / "answers.jsonl").write_text("x" * 100)
    checkpoint.finish()
    assert checkpoint.finished
    left = {path.name for path in checkpoint.folder.iterdir()}
    assert left == {"manifest.json", "lock.json", "finished.json", "resumes.json"}
    assert read_json(checkpoint.folder / "finished.json")["resumed_at"] == [1, 7]
    checkpoint.__exit__(None, None, None)
    with Checkpoint(tmp_path, IDENTITY, RUN) as again:
        assert not again.finished
        assert again.resumed_at == []
    checkpoint.__enter__()


def test_finishing_leaves_those_that_wait_for_the_lock_alone(tmp_path):
    entered = []

    def second():
        with Checkpoint(tmp_path, IDENTITY, RUN, patience=30) as other:
            entered.append(other.finished)

    waiting = threading.Thread(target=second)
    with Checkpoint(tmp_path, IDENTITY, RUN) as checkpoint:
        waiting.start()
        while not list(checkpoint.folder.glob(".lock.json.*")):
            time.sleep(0.01)
        checkpoint.finish()
        assert not entered
    waiting.join(30)
    assert entered == [False]  # it began anew


def test_identity_of_a_job_follows_settings_inputs_and_code_only(tmp_path):
    source, folder = tmp_path / "rows", tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("w")
    source.write_text("x")

    def job(**changes):
        params = {"study": "s", "code": "c", "arm": {"rate": 0.1}} | changes
        return SimpleNamespace(
            params=Attributes(params), wildcards={"seed": "1"}, input=[source, folder], output=["o"], log=["l"]
        )

    first = job_identity(job(), "arms")
    assert first["config"] == {"study": "s", "arm": {"rate": 0.1}}
    assert (first["code"], first["wildcards"]) == ("c", {"seed": "1"})
    assert first["inputs"][str(source)] == file_digest(source)
    assert "plotly" not in first["versions"]
    assert job_run(job(), "arms") == {"study": "s", "stage": "arms", "seed": "1", "outputs": ["o"]}
    assert digest_of(job_identity(job(), "arms")) == digest_of(first)
    others = [
        job_identity(job(code="d"), "arms"),
        job_identity(job(arm={"rate": 0.2}), "arms"),
        job_identity(job(), "x"),
    ]
    (folder / "weights").write_text("v")
    others.append(job_identity(job(), "arms"))
    assert len({digest_of(identity) for identity in [first, *others]}) == 5


class Attributes(dict):
    """Snakemake's params: a mapping whose values are attributes too."""

    __getattr__ = dict.__getitem__


def die_at(event_number):
    """Kill this process at the n-th event that Python reports to audit hooks (opening, renaming, removing, … files)."""
    left = event_number

    def count(event, arguments):
        nonlocal left
        if event.startswith(("open", "os.", "shutil.")):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def in_child(work):
    """Run `work` in a forked process; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the child failed"
    return os.WIFSIGNALED(status)


def save_two(root, number):
    with Checkpoint(root, IDENTITY, RUN) as checkpoint:
        for step in (number, number + 1):
            checkpoint.save(step, writing(step))
            (root / "said").write_text(str(step))  # from here on the step must survive


@settings(max_examples=20, deadline=None)
@example(points=[41, 54, 53])
@given(points=st.lists(st.integers(1, 90), min_size=1, max_size=4))
def test_wherever_the_writer_dies_the_last_saved_step_is_whole(tmp_path_factory, points):
    root = tmp_path_factory.mktemp("root")
    number, folder = 0, checkpoint_folder(root, IDENTITY)
    for point in points:

        def work(number=number, point=point):
            die_at(point)
            save_two(root, number)

        in_child(work)
        said = int((root / "said").read_text()) if (root / "said").exists() else None
        with Checkpoint(root, IDENTITY, RUN) as checkpoint:
            newest = checkpoint.newest()
        if said is not None:
            found = int(newest.name.removeprefix("step-"))
            assert found in (said, said + 1)
        if newest is not None:
            number = int(newest.name.removeprefix("step-"))
            assert {k: v for k, v in read(newest).items() if k != "complete.json"} == state(number)
    save_two(root, number)
    # What a process that died asking for the lock leaves is removed an hour later: it may be another one's that is about to ask.
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".lock.json.")) == [
        "manifest.json",
        f"step-{number:08d}",
        f"step-{number + 1:08d}",
    ]


def test_a_killed_process_is_followed_by_the_next(tmp_path):
    """kill -9 from outside, at any time, with the lock of the dead found dead at once."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_checkpoints import *
root = Path({str(tmp_path)!r})
with Checkpoint(root, IDENTITY, RUN) as checkpoint:
    newest = checkpoint.newest()
    number = int(newest.name[5:]) if newest else 0
    print("begun", flush=True)
    while True:
        number += 1
        checkpoint.save(number, writing(number))
"""
    reached = []
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "begun\n"
        time.sleep(random.uniform(0.02, 0.2))
        process.kill()
        process.communicate()
        newest = newest_step(checkpoint_folder(tmp_path, IDENTITY))
        reached.append(int(newest.name[5:]))
        assert read(newest)["a.bin"] == state(reached[-1])["a.bin"]
    assert reached == sorted(reached)
    assert reached[-1] > reached[0]
