"""How a training is spread over processes and machines: what is read from SLURM, what is started, what is handed on."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from snakemake.iocontainers import Namedlist
from tiny_study import job
from transformers import TrainingArguments

from mtkv.checkpointing.preemption import SAVED
from mtkv.config.arms import TrainingConfig
from mtkv.config.kv import KVConfig
from mtkv.config.models import ModelConfig
from mtkv.config.resources import TrainResources
from mtkv.distill.teacher_kv import TeacherFiles
from mtkv.stages.train import TrainingRun, WorkerRequest
from mtkv.training import launcher as launch
from mtkv.training import strategies
from mtkv.training.checkpointing import SavedJob
from mtkv.training.world_layout import FIRST_PORT, PORTS, Rendezvous, WorldLayout, host_names, job_port, slurm_place

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NODEID": "2",
    "SLURM_NNODES": "4",
    "SLURM_JOB_NODELIST": "gpu[01-03],login-a",
}


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        # The first five are from the man page of scontrol and SLURM's hostlist documentation.
        ("lx15", ["lx15"]),
        ("lx[15,18,32-33]", ["lx15", "lx18", "lx32", "lx33"]),
        ("linux[00-02]", ["linux00", "linux01", "linux02"]),
        ("tux[1-2],snow3", ["tux1", "tux2", "snow3"]),
        ("unit[0-1]rack[0-2]", [f"unit{u}rack{r}" for u in range(2) for r in range(3)]),
        ("a[08-11]-ib,b", ["a08-ib", "a09-ib", "a10-ib", "a11-ib", "b"]),
    ],
)
def test_slurms_list_of_nodes_is_expanded(nodelist, names):
    assert host_names(nodelist) == names


@given(st.lists(st.tuples(st.sampled_from(["n", "gpu-a", "c2-"]), st.integers(0, 999), st.integers(0, 4)), min_size=1))
def test_every_range_is_expanded_in_order(parts):
    nodelist = ",".join(f"{name}[{start:03d}-{start + more:03d}]" for name, start, more in parts)
    wanted = [f"{name}{number:03d}" for name, start, more in parts for number in range(start, start + more + 1)]
    assert host_names(nodelist) == wanted


@pytest.mark.parametrize("nodelist", ["gpu[1-3", "gpu[a-c]", "gpu[]"])
def test_a_list_that_cannot_be_read_is_refused(nodelist):
    with pytest.raises(ValueError, match="SLURM's list of nodes"):
        host_names(nodelist)


def test_each_node_knows_the_first_one_and_one_port():
    places = [slurm_place(SLURM | {"SLURM_NODEID": str(node)}) for node in range(4)]
    assert [place.node for place in places] == [0, 1, 2, 3]
    assert {(place.address, place.port) for place in places} == {("gpu01", FIRST_PORT + 4711)}
    assert FIRST_PORT <= job_port("99999999") < FIRST_PORT + PORTS <= 32768
    assert job_port("12_3") != job_port("12_4")


def test_outside_a_job_of_several_nodes_the_missing_variable_is_named():
    with pytest.raises(ValueError, match="SLURM_NODEID is not set"):
        slurm_place({name: value for name, value in SLURM.items() if name != "SLURM_NODEID"})
    with pytest.raises(ValueError, match="SLURM_NNODES is 3"):
        slurm_place(SLURM | {"SLURM_NNODES": "3"})


def test_processes_are_numbered_over_all_nodes():
    spread = WorldLayout("ddp", nodes=4, processes=8)
    found = [
        launch.worker_environment(spread, slurm_place(SLURM | {"SLURM_NODEID": str(node)}), local, {"HOME": "/root"})
        for node in range(4)
        for local in range(spread.on_each_node)
    ]
    assert [int(each["RANK"]) for each in found] == list(range(8))
    assert [int(each["LOCAL_RANK"]) for each in found] == [0, 1] * 4
    assert {each["WORLD_SIZE"] for each in found} == {"8"}
    assert {(each["MASTER_ADDR"], each["MASTER_PORT"]) for each in found} == {("gpu01", str(FIRST_PORT + 4711))}
    assert all(each["HOME"] == "/root" and each["OMP_NUM_THREADS"] == "1" for each in found)
    assert launch.worker_environment(spread, Rendezvous(), 0, {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"


def test_srun_starts_one_launcher_on_each_node_which_starts_its_processes(tmp_path, monkeypatch):
    """A stand-in for srun runs the command once for each task with SLURM's variables, as srun does."""
    spread = WorldLayout("ddp", nodes=2, processes=4)
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"layout": asdict(spread)}))
    srun = tmp_path / "srun"
    srun.write_text(
        f"#!{sys.executable}\n"
        "import os, subprocess, sys\n"
        "options = [a for a in sys.argv[1:] if a.startswith('--')]; command = sys.argv[1 + len(options):]\n"
        "count = int(next(o for o in options if o.startswith('--ntasks=')).split('=')[1])\n"
        f"env = os.environ | {SLURM!r} | {{'SLURM_NNODES': str(count), 'SLURM_JOB_NODELIST': 'localhost,localhost'}}\n"
        "tasks = [subprocess.Popen(command, env=env | {'SLURM_NODEID': str(n)}) for n in range(count)]\n"
        "sys.exit(max(task.wait() for task in tasks))\n"
    )
    srun.chmod(0o755)
    # The processes write who they are in place of training.
    worker = tmp_path / "stand_in_worker.py"
    worker.write_text(
        "import json, os, pathlib\n"
        "names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')\n"
        f"pathlib.Path({str(tmp_path)!r}, 'rank' + os.environ['RANK']).write_text(json.dumps([os.environ[n] for n in names]))\n"
    )
    node = tmp_path / "stand_in_node.py"
    node.write_text(
        "import sys\nfrom mtkv.training import launcher as launch\nlaunch.WORKER = 'stand_in_worker'\nsys.exit(launch.main(sys.argv[1]))\n"
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(launch.__file__).parents[2]}")
    monkeypatch.setattr(launch, "NODE", "stand_in_node")
    assert launch.launch(request, spread) == 0
    found = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(4)]
    port = str(FIRST_PORT + 4711)
    assert found == [[str(r), str(r % 2), "4", "2", "localhost", port] for r in range(4)]


def processes(*codes, seconds=0.0):
    script = "import signal, sys, time; time.sleep({}); sys.exit({})"
    return [subprocess.Popen([sys.executable, "-c", script.format(seconds, code)]) for code in codes]


@pytest.mark.parametrize(("codes", "code"), [((0, 0), 0), ((SAVED, SAVED), SAVED), ((0, SAVED), SAVED), ((0, 3), 3)])
def test_the_whole_ends_as_its_processes_do(codes, code):
    assert launch.wait(processes(*codes)) == code


def test_a_failure_ends_the_others_at_once_and_a_saved_process_waits_for_them(monkeypatch):
    running = [*processes(1), *processes(0, seconds=60)]
    started = time.monotonic()
    assert launch.wait(running) == 1
    assert time.monotonic() - started < 30
    assert running[1].returncode == -signal.SIGKILL
    monkeypatch.setattr(launch, "PATIENCE", 0.5)
    slow = [*processes(SAVED), *processes(0, seconds=60)]
    assert launch.wait(slow) == SAVED
    assert slow[1].returncode == -signal.SIGKILL


def test_usr1_reaches_every_process():
    script = (
        "import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *a: sys.exit(75)); print('up', flush=True);"
        " time.sleep(60); sys.exit(1)"
    )
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) for _ in range(2)]
    for process in running:
        assert process.stdout.readline() == b"up\n"
    before = signal.getsignal(signal.SIGUSR1)
    timer = threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGUSR1))
    timer.start()
    assert launch.wait(running) == SAVED
    assert [process.returncode for process in running] == [SAVED, SAVED]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_request_comes_back_as_it_was(tmp_path):
    """To the last digit, and with the very objects that `train_arm` is given in one process."""
    teacher = ModelConfig(source="path", name="t")
    run = TrainingRun(
        student=ModelConfig(source="path", name="m"),
        training=TrainingConfig(steps=3, lora={"rank": 2}),
        kv={"teachers": ["a", "b"], "fusion": {"strategy": "learnable"}, "align": {"ridge": 0.1 + 0.2}},
        seed=7,
        train_rows=Path("a b/rows.parquet"),
        validation_rows=Path("val.parquet"),
        teachers=[TeacherFiles(teacher, Path("map"), None, "raw"), TeacherFiles(teacher, Path("map"), Path("store"))],
        **{name: tmp_path / name for name in ("model_folder", "log_path", "routing_path")},
    )
    saved = SavedJob(identity={"a": [1, None]}, run={"outputs": ["x"]}, log=tmp_path / "log", seconds=1.5)
    layout = WorldLayout("ddp", nodes=2, processes=4, stream=True)
    request = WorkerRequest(run=run, job=saved, layout=layout, result=tmp_path / "result.json")
    again = WorkerRequest.model_validate_json(request.model_dump_json())
    assert again == request
    assert again.run.kv.align.ridge == 0.1 + 0.2
    assert [type(teacher) for teacher in again.run.teachers] == [TeacherFiles, TeacherFiles]
    assert isinstance(again.run.kv, KVConfig)
    assert isinstance(again.layout, WorldLayout)


def test_what_a_job_says_of_its_checkpoints_and_what_it_leaves_out(tmp_path):
    (tmp_path / "rows").write_text("x")
    made = job(
        params={"study": "s", "code": "c"},
        wildcards={"seed": "1"},
        input=[str(tmp_path / "rows")],
        output=["o"],
        log=["log"],
        resources={"gpu": 2},
    )
    saved = SavedJob.of(made)
    assert (saved.seconds, saved.report_to, saved.log) == (600, "none", Path("log"))
    assert (saved.identity["code"], saved.identity["wildcards"], saved.run["outputs"]) == ("c", {"seed": "1"}, ["o"])
    made.resources = Namedlist(fromdict={"checkpoint_seconds": 60, "report_to": "wandb"})
    assert (SavedJob.of(made).seconds, SavedJob.of(made).report_to) == (60, "wandb")


def test_an_argument_that_no_training_has_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="Extra inputs"):
        WorkerRequest.model_validate_json('{"os.system": "x"}')


@pytest.mark.parametrize(
    ("asked", "spread"),
    [
        ({}, WorldLayout()),
        ({"gpu": 1}, WorldLayout()),
        ({"strategy": "ddp", "gpu": 8}, WorldLayout("ddp", 1, 8)),
        ({"strategy": "fsdp2", "gpu": 8, "nodes": 2}, WorldLayout("fsdp2", 2, 8)),
        ({"strategy": "ddp", "processes": 4}, WorldLayout("ddp", 1, 4)),
    ],
)
def test_the_config_says_how_many_processes(asked, spread):
    resources = TrainResources.model_validate(asked)
    given = {"strategy": resources.strategy, "nodes": resources.nodes, "workers": resources.workers}
    assert WorldLayout.of(given) == spread
    assert spread.on_each_node * spread.nodes == spread.processes


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpu": 4}, "'single' is one process, but gpu 4"),
        ({"nodes": 2}, "'single' is one process"),
        ({"strategy": "ddp", "gpu": 6, "nodes": 4}, "6 cannot be the same on each of 4 nodes"),
        ({"strategy": "ddp", "gpu": 2, "processes": 4}, "there are 2 GPUs"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_config(asked, message):
    with pytest.raises(ValidationError, match=message):
        TrainResources.model_validate(asked)


def test_every_strategy_of_the_config_has_a_preset():
    field = TrainResources.model_fields["strategy"].annotation
    assert set(field.__args__) == set(strategies.strategies())
    known = set(TrainingArguments.__dataclass_fields__)
    for name in strategies.strategies():
        assert set(strategies.preset(name)) <= known
    assert strategies.preset("single") == {}
    with pytest.raises(ValueError, match="'zero9' is unknown"):
        strategies.preset("zero9")


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_a_deepspeed_preset_is_what_accelerate_and_the_trainer_fill_in(name, stage):
    """Every `auto` is filled from the Trainer's own arguments: nothing of a run is written twice."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    class Filled(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
        """transformers' own on accelerate's, as it is where the package is installed."""

        def __init__(self, config):
            HfDeepSpeedConfig.__init__(self, config)
            self._dtype, self.mismatches = None, []

    preset = strategies.preset(name)["deepspeed"]
    assert HfDeepSpeedConfig(preset).config["zero_optimization"]["stage"] == stage
    filled = Filled(preset)
    arguments = TrainingArguments(
        per_device_train_batch_size=3, gradient_accumulation_steps=5, max_grad_norm=0.7, report_to="none"
    )
    filled.trainer_config_process(arguments)
    assert filled.config["train_micro_batch_size_per_gpu"] == 3
    assert filled.config["gradient_accumulation_steps"] == 5
    assert filled.config["train_batch_size"] == 15
    assert filled.config["gradient_clipping"] == 0.7
    assert "bf16" not in filled.config  # bfloat16 is autocast of the forward, over float32 weights
    assert "auto" not in json.dumps(filled.config)
    assert filled.config["zero_allow_untested_optimizer"] is True


def test_deepspeed_without_the_package_or_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(strategies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install mtkv\[deepspeed\]"):
        strategies.check_strategy("zero3")
    monkeypatch.setattr(strategies.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(strategies, "on_cpu", lambda: True)
    with pytest.raises(ValueError, match="needs GPUs"):
        strategies.check_strategy("zero2")
