"""`mtkv status` beside a real Snakemake: the study's own rules, with scripts that train, wait and fail as told; then killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mtkv.cli import app
from mtkv.config.study import read_study
from mtkv.ops.status.jobs import jobs_of
from mtkv.ops.status.look import look
from mtkv.provenance.files import write_json

REPOSITORY = Path(__file__).parents[2]
ARMS = ("raw", "sft", "single", "fixed")
# Writes every output, as the real scripts do; the card says the job took 40 s. `sft` trains under a lock until it may end, `single` fails.
SCRIPT = """
import json, sys, time
from pathlib import Path
from mtkv.checkpointing.store import Checkpoint
log = open(snakemake.log[0], "w", encoding="utf-8")
wildcards = dict(snakemake.wildcards.items())
if wildcards.get("arm") == "sft" and snakemake.rule == "train":
    run = {"study": "pocket", "stage": "arms", "outputs": list(map(str, snakemake.output))} | wildcards
    with Checkpoint(Path("checkpoints"), {"of": "sft"}, run) as checkpoint:
        checkpoint.progress(20, 150, "steps", loss=2.5)
        time.sleep(1.2)
        checkpoint.progress(50, 150, "steps", loss=1.25, gpu_memory_mb=2048.0, gpu_utilisation=75)
        while not Path("go").exists():
            time.sleep(0.05)
        checkpoint.finish()
if wildcards.get("arm") == "single" and snakemake.rule == "train":
    while not Path("fail").exists():
        time.sleep(0.05)
    print("step 3\\nValueError: the loss is ∞", file=log, flush=True)
    sys.exit(1)
for output in map(Path, snakemake.output):
    if output.name.endswith("card.json"):
        output.write_text(json.dumps({"wall_seconds": 40.0}))
    elif output.suffix:
        output.touch()
    else:
        output.mkdir(parents=True, exist_ok=True)
"""


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    """A folder with the rules and a study of four arms and one seed."""
    folder = tmp_path_factory.mktemp("running")
    for name in ("Snakefile", "requirements.lock"):
        shutil.copy(REPOSITORY / name, folder / name)
    for name in ("workflow", "config"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for script in (folder / "workflow/scripts").iterdir():
        script.write_text(SCRIPT, encoding="utf-8")
    base = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text(encoding="utf-8"))
    gone = {name: None for name in base["arms"] if name not in ARMS}
    overlay = {"seeds": [42], "arms": gone, "claims": dict.fromkeys(base["claims"]), "teachers": {"shards": 1}}
    (folder / "study.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def study(workflow):
    return read_study(workflow / "config/config.yaml", workflow / "study.yaml")


def start(folder, *arguments):
    command = [sys.executable, "-m", "snakemake", "--cores", "4", "--keep-going", "--configfile", "study.yaml"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    with open(folder / "snakemake.out", "w") as output:
        return subprocess.Popen(
            [*command, *arguments], cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def look_until(condition, study, folder, seconds=60):
    """The first look that meets the condition."""
    end = time.monotonic() + seconds
    while not condition(found := look(study, folder)):
        assert time.monotonic() < end, (folder / "snakemake.out").read_text() + str(found)
        time.sleep(0.1)
    return found


def states(found, rule):
    return {(status.job.wildcards.get("arm"), status.state) for status in found.statuses if status.job.rule == rule}


@pytest.fixture(scope="module")
def moments(workflow, study):
    """Looks before, during and after a run that is killed, and after the run that goes on."""
    found = {"before": look(study, workflow)}
    running = start(workflow)
    try:
        met = {("sft", "running"), ("single", "running"), ("fixed", "done"), ("raw", "done")}
        found["during"] = look_until(
            lambda seen: (
                met <= states(seen, "train") | states(seen, "predict")
                and any(status.progress and status.progress.done == 50 for status in seen.statuses)
                and ("fixed", "done") in states(seen, "score")
            ),
            study,
            workflow,
        )
        (workflow / "fail").touch()
        found["failed"] = look_until(lambda seen: ("single", "failed") in states(seen, "train"), study, workflow)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    found["killed"] = look(study, workflow)
    (workflow / "go").touch()
    subprocess.run(
        [sys.executable, "-m", "snakemake", "--unlock", "--configfile", "study.yaml"],
        cwd=workflow,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        check=True,
    )
    start(workflow, "--rerun-incomplete").wait()
    found["after"] = look(study, workflow)
    return found


def test_before_anything_ran(moments, study):
    assert {status.state for status in moments["before"].statuses} == {"waiting"}
    assert len(moments["before"].statuses) == len(jobs_of(study))
    assert moments["before"].estimate.seconds is None
    assert moments["before"].snakemake == "no"


def test_while_it_runs(moments):
    during = moments["during"]
    assert during.snakemake == "here"
    assert states(during, "train") == {("sft", "running"), ("single", "running"), ("fixed", "done")}
    assert ("sft", "waiting") in states(during, "predict")
    assert states(during, "compare") == {(None, "waiting")}
    training = next(status for status in during.of("running") if status.job.wildcards["arm"] == "sft")
    assert training.progress.facts == {"loss": 1.25, "gpu_memory_mb": 2048.0, "gpu_utilisation": 75}
    assert (training.progress.done, training.progress.total, training.progress.unit) == (50, 150, "steps")
    # 30 steps in the second or so since it began; whole seconds are what the file has
    assert 10 <= training.progress.rate <= 40


def test_the_time_left_is_the_sum_of_what_is_left(moments):
    """single counts as 40 s, like the one finished training, sft by its own rate; two predictions of 40 s; scores nothing."""
    during = moments["during"]
    rate = next(status.progress.rate for status in during.of("running") if status.progress)
    assert during.estimate.unknown == ("compare", "report")
    assert during.estimate.at_once == 2
    sum_left = 40 + 100 / rate + 2 * 40
    assert during.estimate.seconds == pytest.approx(max(sum_left / 2, 40 + 40))


def test_a_failure_names_the_log_to_read(moments):
    failed = next(status for status in moments["failed"].statuses if status.state == "failed")
    assert failed.job.name == "train single 42"
    assert failed.logs[0] == "results/pocket/logs/arms/single-seed42.log"


def test_after_a_kill_what_was_begun_is_stopped(moments):
    killed = moments["killed"]
    assert killed.snakemake == "killed"
    assert killed.of("running", "queued") == []
    assert states(killed, "train") == {("sft", "stopped"), ("single", "failed"), ("fixed", "done")}
    stopped = next(status for status in killed.statuses if status.state == "stopped")
    assert "checkpoints/" in stopped.note
    assert stopped.progress.done == 50


def test_the_next_run_finishes_what_was_stopped(moments):
    after = moments["after"]
    assert after.snakemake == "no"
    assert states(after, "train") == {("sft", "done"), ("single", "failed"), ("fixed", "done")}
    assert ("sft", "done") in states(after, "score")
    assert len(after.of("waiting")) == 4  # predict and score of the failed arm, compare, report


def test_the_command_shows_and_writes_what_was_found(moments, workflow, monkeypatch, tmp_path):
    monkeypatch.chdir(workflow)
    shown = CliRunner().invoke(
        app, ["status", "--configfile", "study.yaml", "--json", str(tmp_path / "status.json")], env={"COLUMNS": "160"}
    )
    assert shown.exit_code == 0, shown.output
    assert "results/pocket/logs/arms/single-seed42.log" in shown.output
    assert "ValueError: the loss is ∞" in shown.output
    written = json.loads((tmp_path / "status.json").read_text())
    assert written["jobs"]["train"] == {"done": 2, "running": 0, "queued": 0, "failed": 1, "stopped": 0, "waiting": 0}
    (failed,) = written["details"]
    assert failed["read"] == "results/pocket/logs/arms/single-seed42.log"
    assert failed["last_line"] == "ValueError: the loss is ∞"
    alone = CliRunner().invoke(app, ["status", "--configfile", "study.yaml", "--json", "-"])
    assert json.loads(alone.output)["jobs"] == written["jobs"]
    assert alone.output.isascii()  # valid JSON whatever the terminal's encoding is


def test_watching_ends_when_all_is_done(moments, study, workflow, tmp_path, monkeypatch):
    shutil.copytree(workflow / "config", tmp_path / "config")
    shutil.copy(workflow / "study.yaml", tmp_path)
    for job in jobs_of(study):
        for output in map(tmp_path.joinpath, job.outputs):
            write_json(output, {})
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["status", "--configfile", "study.yaml", "--watch", "--interval", "60"])
    assert shown.exit_code == 0, shown.output
    assert "nothing is left" in shown.output


def test_it_is_quick_and_loads_neither_torch_nor_snakemake(workflow, moments):
    code = (
        "import sys\nfrom mtkv.cli import app\ntry: app(['status', '--configfile', 'study.yaml'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'pandas', 'numpy', 'snakemake', 'transformers') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([sys.executable, "-c", code], cwd=workflow, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
