"""The state of a job by each kind of evidence: Snakemake's log and markers, SLURM's queue, locks of other machines."""

import base64
import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest

from mtkv.checkpointing.lock import WriterLock
from mtkv.config.study import read_study
from mtkv.ops.doctor.checks import DoctorContext
from mtkv.ops.doctor.command import CHECKS
from mtkv.ops.slurm.queue import queue, seconds
from mtkv.ops.status.evidence import gather
from mtkv.ops.status.jobs import jobs_of
from mtkv.ops.status.screen import SNAKEMAKE
from mtkv.ops.status.snakemake_log import Alive, alive, read_logs, started_outputs
from mtkv.ops.status.states import states_of
from mtkv.provenance.files import write_json

REPOSITORY = Path(__file__).parents[2]
STUDY = read_study(REPOSITORY / "config/config.yaml")
JOBS = jobs_of(STUDY)
RUN = "results/pocket/arms/sft/seed42"
LOG = "results/pocket/logs/arms/sft-seed42.log"
# As Snakemake 9.27.1 with the SLURM plugin 2.8.0 wrote it (paths and names changed).
HEAD = "SNAKEMAKE\n=========\n  Host: {host}\n  User: root\n\nSelect jobs to execute...\n"
STARTED = f"""[Sat Nov 21 21:03:20 2026]
rule train:
    input: results/pocket/data/train.parquet, results/pocket/data/val.parquet
    output: {RUN}/model, {RUN}/training.parquet, {RUN}/routing.parquet, {RUN}/card.json
    log: {LOG}
    jobid: 2
    reason: Missing output files: {RUN}/model; Input files updated by another job: results/pocket/data/train.parquet
    wildcards: arm=sft, seed=42
    resources: tmpdir=<TBD>, mem_mb=500, slurm_partition=main, runtime=5, gpu=1
"""
SENT = "Job 2 has been submitted with SLURM jobid 17 (log: /home/me/.snakemake/slurm_logs/rule_train/sft_42/17.log).\n"
ARRAY = "Submitted array job with Snakemake IDs 9,2 and SLURM job ID 17. The individual task IDs are 4-5.\n"
FINISHED = "[Sat Nov 21 21:03:41 2026]\nFinished jobid: 2 (Rule: train)\n2 of 6 steps (33%) done\n"
FAILED = f"""[Sat Nov 21 21:04:41 2026]
Error in rule train:
    message: SLURM-job '17' failed, SLURM status is: 'FAILED'.
    jobid: 2
    input: results/pocket/data/train.parquet, results/pocket/data/val.parquet
    output: {RUN}/model, {RUN}/training.parquet, {RUN}/routing.parquet, {RUN}/card.json
    log: {LOG}, /home/me/17.log (check log file(s) for error details)
    external_jobid: 17
Trying to restart job 2.
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A workflow's folder without SLURM."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def logged(folder, *texts, host=None, name="2026-11-21T210300.000001"):
    path = folder / ".snakemake/log" / f"{name}.snakemake.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD.format(host=host or socket.gethostname()) + "".join(texts), encoding="utf-8")


def locked(folder):
    path = folder / ".snakemake/locks/0.output.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{RUN}/model\n")


def marked(folder, output, slurm=None, length=255):
    """A marker as Snakemake names it: base64, cut into folders where it is longer than a file name may be."""
    name = base64.urlsafe_b64encode(output.encode()).decode()
    parts = [name[i : i + length - 1] for i in range(0, len(name), length - 1)]
    path = folder.joinpath(".snakemake/incomplete", *(f"@{part}" for part in parts[:-1]), parts[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"external_jobid": slurm}))


def squeue(folder, *jobs, code=0, wait=0):
    """A squeue that prints these jobs; (id, state) or (id, state, folder, comment)."""
    whole = [(*job, str(folder), "rule_train_wildcards_sft_42")[:4] if len(job) == 2 else job for job in jobs]
    lines = "\n".join(f"{name}|{state}|1-01:02:03|gpu|Priority|{at}|{comment}" for name, state, at, comment in whole)
    script = folder / "bin/squeue"
    script.write_text(f"#!/bin/sh\n/bin/sleep {wait}\n/bin/cat <<'END'\n{lines}\nEND\nexit {code}\n")
    script.chmod(script.stat().st_mode | stat.S_IEXEC)


def outputs(folder):
    (folder / RUN / "model").mkdir(parents=True)
    for name in ("training.parquet", "routing.parquet", "card.json"):
        (folder / RUN / name).touch()


def state(folder):
    statuses = states_of(JOBS, gather(folder, "pocket", JOBS))
    found = next(status for status in statuses if status.job.outputs[0] == f"{RUN}/model")
    assert all(status.state == "waiting" for status in statuses if status is not found)
    return found


def test_a_finished_job_is_done_by_its_outputs(folder):
    logged(folder, STARTED, FINISHED)
    outputs(folder)
    assert state(folder).state == "done"
    (folder / RUN / "routing.parquet").unlink()
    assert state(folder).state == "waiting"


def test_a_failed_job_says_which_logs_there_are(folder):
    logged(folder, STARTED, SENT, FAILED.partition("Trying")[0])
    found = state(folder)
    assert found.state == "failed"
    assert found.logs == (LOG, "/home/me/17.log", "/home/me/.snakemake/slurm_logs/rule_train/sft_42/17.log")


def test_members_of_a_failed_group_are_failed(folder):
    members = (
        "[Sat Nov 21 21:20:29 2026]\n    message: Error in group train_sft_42\n    log: /home/me/5.log (check log file(s) for"
        f" error details)\n    jobs:\n        rule train:\n            jobid: 2\n            output: {RUN}/model\n"
        f"            log: {LOG} (check log file(s) for error details)\n"
    )
    logged(folder, "group job x (jobs in lexicogr. order):\n", STARTED.replace("\n", "\n    "), "\n", members)
    assert (state(folder).state, state(folder).logs) == ("failed", (LOG,))
    logged(folder, STARTED, SENT, members, STARTED, SENT)
    squeue(folder, ("17", "PENDING"))
    assert state(folder).state == "queued"


def test_the_log_of_a_snakemake_inside_a_job_does_not_count(folder):
    """It counts its jobs anew: its job 2 is another one, and its job 5 is our job 2."""
    other = STARTED.replace("sft", "single")
    inner = STARTED.replace("jobid: 2", "jobid: 5") + FINISHED.replace("jobid: 2", "jobid: 5") + other + FINISHED
    shown = f"Logfile /home/me/17.log:\n{'=' * 80}\n{inner}{'=' * 80}\n"
    logged(folder, STARTED, SENT, FAILED.partition("Trying")[0], shown)
    assert state(folder).state == "failed"
    logged(folder, STARTED, SENT, FAILED.partition("Trying")[0], inner.replace("(Rule: train)", "(Rule: predict)"))
    assert state(folder).state == "failed"


def test_a_restarted_job_is_not_failed(folder):
    logged(folder, STARTED, SENT, FAILED, STARTED, SENT.replace("17", "18"))
    squeue(folder, ("18", "RUNNING"))
    assert state(folder).state == "running"


def test_a_later_run_wins_over_an_earlier_failure(folder):
    logged(folder, STARTED, FAILED, name="2026-11-20T090000.000001")
    assert state(folder).state == "failed"
    logged(folder, STARTED.replace("jobid: 2", "jobid: 8"), FINISHED.replace("jobid: 2", "jobid: 8"))
    outputs(folder)
    assert state(folder).state == "done"
    assert read_logs(folder / ".snakemake/log").events[f"{RUN}/model"].state == "finished"


@pytest.mark.parametrize(("text", "name"), [(SENT, "17"), (ARRAY, "17_5")])
@pytest.mark.parametrize(
    ("slurm", "expected"), [("PENDING", "queued"), ("RUNNING", "running"), ("COMPLETING", "running")]
)
def test_a_sent_job_is_found_in_the_queue(folder, text, name, slurm, expected):
    logged(folder, STARTED, text)
    squeue(folder, ("3", "RUNNING"), (name, slurm))
    found = state(folder)
    assert found.state == expected
    assert name in found.place
    assert (found.note == "Priority") == (expected == "queued")
    if expected == "running":
        assert found.elapsed == 90123


def test_while_it_waits_the_marker_has_the_id(folder):
    marked(folder, f"{RUN}/model", slurm="21")
    squeue(folder, ("21", "PENDING"))
    assert state(folder).state == "queued"
    squeue(folder, ("22", "RUNNING", str(folder), "rule_predict"))
    assert state(folder).state == "stopped"


def test_a_job_of_a_group_runs_when_its_marker_lost_the_id_and_a_group_runs(folder):
    marked(folder, f"{RUN}/model")
    squeue(folder, ("30", "RUNNING", str(folder), "rule_predict_wildcards_sft_42"))
    assert state(folder).state == "stopped"
    group = ("30", "RUNNING", str(folder), "rule_train_sft_42")
    squeue(folder, group)
    assert state(folder).state == "running"
    marked(folder, f"{RUN}/model", slurm="30")
    logged(folder, STARTED, SENT.replace("Job 2", "Job 9c660ce1-4ed1-5d36-95bb-94184925560c"))
    assert (state(folder).state, state(folder).note) == ("queued", "waits for others of its group")


def test_a_silent_queue_is_not_an_empty_one(folder):
    marked(folder, f"{RUN}/model", slurm="21")
    squeue(folder, code=1)
    assert queue(folder) is None
    assert (state(folder).state, state(folder).note) == ("queued", "SLURM does not answer here")
    squeue(folder, ("21", "RUNNING"), wait=5)
    assert queue(folder, timeout=0.2) is None


def test_jobs_of_other_folders_do_not_count(folder):
    logged(folder, STARTED, SENT)
    squeue(folder, ("17", "RUNNING", "/home/me/another", "rule_train"))
    assert queue(folder) == []
    assert state(folder).state == "stopped"


def test_a_job_that_left_the_queue_is_running_until_snakemake_notices(folder):
    logged(folder, STARTED, SENT, host="login2")
    marked(folder, f"{RUN}/model", slurm="17")
    locked(folder)
    squeue(folder)
    found = state(folder)
    assert found.state == "running"
    assert "has left the queue" in found.note


def test_a_marked_output_is_not_done(folder):
    outputs(folder)
    marked(folder, f"{RUN}/training.parquet")
    marked(folder, f"{RUN}/model")
    assert state(folder).state == "stopped"
    locked(folder)
    logged(folder, STARTED, host="login2")
    assert (state(folder).state, state(folder).place) == ("running", "on login2")
    logged(folder, STARTED)  # this host, and no such process
    assert state(folder).state == "stopped"


def test_long_names_of_markers_are_put_together(folder):
    output = "results/" + "x" * 300 + "/model"
    marked(folder, output, slurm="5")
    marked(folder, f"{RUN}/model")
    (folder / ".snakemake/incomplete/half").write_text("{")
    assert started_outputs(folder / ".snakemake") == {output: "5", f"{RUN}/model": None}


def checkpoint(folder, name, **facts):
    run = {"study": "pocket", "outputs": [f"{RUN}/model"]}
    write_json(folder / "checkpoints" / name / "manifest.json", {"run": run} | facts)
    return folder / "checkpoints" / name


def test_a_living_writer_is_running_and_a_dead_one_is_stopped(folder):
    place = checkpoint(folder, "aa")
    write_json(place / "progress.json", {"done": 5, "total": 9, "unit": "steps"})
    with WriterLock(place / "lock.json"):
        found = state(folder)
        assert (found.state, found.progress.done) == ("running", 5)
        assert str(os.getpid()) in found.place
    found = state(folder)
    assert (found.state, found.progress.total, found.progress.rate) == ("stopped", 9, None)
    assert found.note == f"goes on from {place}"
    facts = {"pid": 1, "host": "node7", "machine": "x", "slurm_job_id": "44", "token": "t", "interval": 15.0}
    (place / "lock.json").write_text(json.dumps(facts))
    assert (state(folder).state, state(folder).place) == ("running", "SLURM 44 on node7")
    os.utime(place / "lock.json", (0, 0))
    assert state(folder).state == "stopped"


def test_of_two_checkpoints_the_one_being_written_counts(folder):
    living, other = checkpoint(folder, "aa"), checkpoint(folder, "bb")
    write_json(living / "progress.json", {"done": 1, "total": 9, "unit": "steps"})
    write_json(other / "progress.json", {"done": 8, "total": 9, "unit": "steps"})
    os.utime(living / "progress.json", (1, 1))
    assert state(folder).progress.done == 8
    with WriterLock(living / "lock.json"):
        assert (state(folder).state, state(folder).progress.done) == ("running", 1)


def test_a_finished_checkpoint_is_nobodys(folder):
    write_json(checkpoint(folder, "aa") / "finished.json", {})
    assert state(folder).state == "waiting"
    checkpoint(folder, "bb", run={"study": "other", "outputs": [f"{RUN}/model"]})
    assert state(folder).state == "waiting"


@pytest.mark.parametrize(
    ("text", "expected"), [("0:07", 7), ("59:59", 3599), ("1:00:00", 3600), ("2-03:04:05", 183845), ("INVALID", 0)]
)
def test_slurms_times(text, expected):
    assert seconds(text) == expected


TOY = """
rule one:
    output:
        "{name}.txt",
    run:
        import time
        from pathlib import Path

        while not Path(f"{wildcards.name}.go").exists():
            time.sleep(0.05)
        Path(output[0]).touch()
"""


def snakemake(folder, *arguments):
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
    environment = os.environ | {"PATH": os.defpath}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_snakemake_whose_lock_another_one_removed_is_at_work(folder):
    (folder / "Snakefile").write_text(TOY)
    internal = folder / ".snakemake"
    first, second = snakemake(folder, "a.txt"), snakemake(folder, "b.txt")
    try:
        wait_for(lambda: {"a.txt", "b.txt"} <= started_outputs(internal).keys())
        assert alive(internal, socket.gethostname()) == "here"
        (folder / "b.go").touch()
        assert second.wait(60) == 0
        assert not (internal / "locks").exists()  # Snakemake's own doing
        assert alive(internal, socket.gethostname()) == "unlocked"
        marked(folder, f"{RUN}/model")
        assert state(folder).state == "running"
        ((level, message, fix),) = [
            vars(finding).values() for finding in CHECKS["snakemake"](DoctorContext(STUDY, folder))
        ]
        assert (level, "took its lock away" in message, "start none" in fix) == ("warning", True, True)
        (folder / "a.go").touch()
        assert first.wait(60) == 0
        assert alive(internal, socket.gethostname()) == "no"
        assert state(folder).state == "stopped"
    finally:
        first.kill()
        second.kill()


def test_a_snakemake_that_only_plans_is_not_at_work(folder):
    (folder / "Snakefile").write_text(TOY)
    (folder / ".snakemake/log").mkdir(parents=True)
    planning = snakemake(folder, "--dry-run", "a.txt")
    found = set()
    while planning.poll() is None:
        found.add(alive(folder / ".snakemake", socket.gethostname()))
        time.sleep(0.02)
    assert found == {"no"}


def test_every_state_of_snakemake_has_its_sentence():
    assert set(SNAKEMAKE) == set(get_args(Alive))
