"""A training that is cut off goes on to the very model that an undisturbed one gives, or says why it does not."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_study import TRAINING, TinyStudy, kv, same, weights
from transformers import TrainerCallback, TrainerState

from mtkv.checkpointing.identity import ManifestError
from mtkv.checkpointing.lock import LockedError
from mtkv.checkpointing.preemption import SAVED, Preemption
from mtkv.checkpointing.store import Checkpoint, carry_on, checkpoint_folder, newest_step
from mtkv.config.arms import LoraConfig, TrainingConfig
from mtkv.config.kv import KVConfig
from mtkv.config.latent import LatentConfig
from mtkv.config.phases import Phase
from mtkv.provenance.files import DiskFullError
from mtkv.stages.train import training_arguments
from mtkv.training import resume
from mtkv.training.checkpointing import (
    CheckpointPolicy,
    load_optimizer_state,
    load_trained,
    optimizer_state,
    save_trained,
    trained_tensors,
)
from mtkv.training.data_parallel import DeterministicSampler
from mtkv.training.resume import trainer_folder
from mtkv.training.trainer import DistillationTrainer

IDENTITY = {"stage": "arms", "config": {"learning_rate": 1e-3}}
RUN = {"study": "tiny", "stage": "arms"}
SHORT = TRAINING.model_copy(update={"steps": 4, "eval_steps": 3, "eval_rows": 4, "logging_steps": 3})
PHASES = [Phase(name="match", share=0.3, ce=0, kv=1), Phase(name="fading", share=0.7, ce=[0, 1], kv=[1, 0])]
PHASES_OF_THEIR_OWN = [
    Phase(name="prompts", share=0.5, ce=0, text="prompts", learning_rate=2e-3, layers=[0, 1]),
    Phase(name="labelled", share=0.5, sources=["sums"], rows=9),
]
TABLES = ("training.parquet", "routing.parquet")


class CutOffError(Exception):
    """What ends a training in these tests where a signal would."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return TinyStudy(tmp_path_factory.mktemp("study"))


def kept(root, identity=IDENTITY, **how):
    return Checkpoint(root, identity, RUN, **how)


def resumed(study, name, root, cut_at, arm=None, training=SHORT, every=1, **more):
    """Train with a cut after step `cut_at` (saved at the last multiple of `every`) and a second start; output and facts of the second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            resume.Pace, "on_step_begin", lambda self, args, state, control, **_: _cut(state, cut_at), raising=False
        )
        with kept(root) as checkpoint, pytest.raises(CutOffError):
            study.train(name, arm, training=training, policy=CheckpointPolicy(checkpoint, steps=every), **more)
    with kept(root) as checkpoint:
        return study.train(name, arm, training=training, policy=CheckpointPolicy(checkpoint, steps=every), **more)


def _cut(state, step):
    if state.global_step == step:
        raise CutOffError


def same_tables(one: Path, other: Path) -> bool:
    return all(pd.read_parquet(one / name).equals(pd.read_parquet(other / name)) for name in TABLES)


@pytest.mark.slow
def test_a_training_killed_100_times_gives_the_very_model_of_an_undisturbed_one(tmp_path):
    script = Path(__file__).with_name("killing.py")
    ended = subprocess.run(
        [sys.executable, script, tmp_path, "100", "1"], capture_output=True, text=True, timeout=1500, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert [chain for chain in result["chains"] if chain["differing"]] == []
    kills = result["kills"]
    assert kills["outside"] + kills["saving"] >= 100
    assert min(kills.values()) > 10  # of each kind, and with a checkpoint left half-written
    for arm in ("sft", "kv"):
        steps = {step for chain in result["chains"] if chain["arm"] == arm for step in chain["resumed_at"]}
        assert len(steps) > 1, arm


@pytest.mark.parametrize(
    ("name", "arm", "changes", "cut_at"),
    [
        ("epochs", None, {"steps": None, "epochs": 1.5, "batch_size": 5, "gradient_accumulation": 2}, 4),
        ("end of a pass", None, {"steps": 8}, 6),
        ("lora", None, {"lora": LoraConfig(rank=2, dropout=0.1)}, 2),
        ("gaussian", {"control": "gaussian", "fusion": {"strategy": "learnable"}}, {}, 2),
        ("trained map", {"align": {"map": "linear"}, "control": "shuffle_time"}, {}, 3),
        ("phases", {"control": "shuffle_items"}, {"logging_steps": 1, "phases": PHASES}, 2),
        (
            "in the middle of prompts",
            {"control": "shuffle_time"},
            {"logging_steps": 1, "phases": PHASES_OF_THEIR_OWN},
            1,
        ),
        (
            "in the middle of a phase",
            {"control": "shuffle_items"},
            {"logging_steps": 1, "phases": PHASES_OF_THEIR_OWN},
            3,
        ),
    ],
)
def test_every_kind_of_arm_goes_on_to_the_same_result(study, tmp_path, name, arm, changes, cut_at):
    arm = arm and kv(**{"loss": {"gamma": 0.0}} | arm)
    training = SHORT.model_copy(update=changes)
    undisturbed, facts = study.train(f"{name}, undisturbed", arm, training=training)
    output, again = resumed(study, name, tmp_path, cut_at, arm, training)
    assert same(weights(undisturbed), weights(output))
    assert same_tables(undisturbed, output)
    assert again["resumed_at"] == [cut_at]
    assert facts["resumed_at"] == []
    for fact in ("steps", "rows_seen", "tokens"):
        assert facts[fact] == again[fact], fact


LATENT = LatentConfig(tokens=4, iterations=2, keep_last_step=True, codi_weight=0.5)


@pytest.mark.parametrize(
    ("name", "arm", "changes"),
    [
        ("latents", None, {}),
        ("latents, lora", None, {"lora": LoraConfig(rank=2, dropout=0.1)}),
        ("latents, own kv", {"teachers": ["student"], "align": {"map": "identity"}, "select": {"method": "rkv"}}, {}),
        ("latents, router", {"select": {"method": "random"}, "fusion": {"strategy": "learnable"}}, {}),
        ("latents, noise", {"align": {"map": "linear", "side": "student"}, "control": "gaussian"}, {}),
    ],
)
def test_every_kind_of_arm_with_latents_goes_on_to_the_same_result(study, tmp_path, name, arm, changes):
    arm = arm and kv(**{"loss": {"gamma": 0.0}} | arm)
    training = SHORT.model_copy(update=changes)
    undisturbed, _ = study.train(f"{name}, undisturbed", arm, training=training, latent=LATENT)
    output, again = resumed(study, name, tmp_path, 2, arm, training, latent=LATENT)
    assert again["resumed_at"] == [2]
    assert same_tables(undisturbed, output)
    assert same(weights(undisturbed), weights(output))
    latents, found = (load_file(folder / "model" / "latent.safetensors") for folder in (undisturbed, output))
    assert latents.keys() == found.keys() >= {"latents", "begin", "end"}
    assert same(latents, found)


def test_a_fuser_and_its_router_go_on_to_the_same_result(study, tmp_path):
    given = {
        "teachers": ["qwen3", "gpt2"],
        "transfer": "inject",
        "fusion": {"strategy": "learnable"},
        "control": "gaussian",
    }
    arm = KVConfig.model_validate(given)
    undisturbed, _ = study.train("inject, undisturbed", arm, training=SHORT)
    output, again = resumed(study, "inject", tmp_path, 2, arm, SHORT)
    assert again["resumed_at"] == [2]
    assert same_tables(undisturbed, output)
    fuser, found = (load_file(folder / "model" / "fuser.safetensors") for folder in (undisturbed, output))
    assert any("router" in name for name in fuser)
    assert same(fuser, found)


def test_only_what_is_trained_is_kept_and_nothing_is_pickled_but_the_optimizer(study, tmp_path):
    training = SHORT.model_copy(update={"lora": LoraConfig(rank=2, targets=["q_proj"])})
    with kept(tmp_path) as checkpoint:
        study.train("kept", training=training, policy=CheckpointPolicy(checkpoint, steps=3))
        steps = [trainer_folder(step) for step in checkpoint.intact().values()]
    assert [step.name for step in steps] == ["checkpoint-4"]  # the record of the last step stays
    names = load_file(steps[0] / "model.safetensors")
    assert len(names) == 2 * 3  # two low-rank matrices in each of three layers
    assert all("lora" in name for name in names)
    assert {path.name for path in steps[0].iterdir()} == {"model.safetensors", "rng_state.pth", "trainer_state.json"}


def test_after_the_last_step_outputs_are_written_without_training(study, tmp_path, monkeypatch):
    with kept(tmp_path) as checkpoint:
        output, facts = study.train("whole", kv(), training=SHORT, policy=CheckpointPolicy(checkpoint, steps=2))
    first = weights(output)
    tables = {name: pd.read_parquet(output / name) for name in TABLES}
    shutil.rmtree(output)
    monkeypatch.setattr(resume.ResumableTrainer, "train", None)
    with kept(tmp_path) as checkpoint:
        output, again = study.train("whole", kv(), training=SHORT, policy=CheckpointPolicy(checkpoint))
    assert same(first, weights(output))
    assert all(tables[name].equals(pd.read_parquet(output / name)) for name in TABLES)
    assert again["train_seconds"] == facts["train_seconds"]


def test_usr1_saves_after_the_step_and_leaves_with_75(study, tmp_path, capfd):
    asked = threading.Event()

    class Signal(TrainerCallback):
        def on_substep_end(self, args, state, control, **_):
            if state.global_step == 1 and not asked.is_set():
                asked.set()
                os.kill(os.getpid(), signal.SIGUSR1)

    training = SHORT.model_copy(update={"batch_size": 2, "gradient_accumulation": 2})
    undisturbed, _ = study.train("no signal", training=training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "reporters", lambda *_: [Signal()])
        with kept(tmp_path) as checkpoint, Preemption() as preemption, pytest.raises(SystemExit) as ended:
            study.train("signal", training=training, policy=CheckpointPolicy(checkpoint, preemption))
    assert ended.value.code == SAVED == 75
    assert newest_step(checkpoint.folder).name == "step-00000002"
    assert "step 2 of 4 saved" in capfd.readouterr().err
    with kept(tmp_path) as checkpoint:
        output, facts = study.train("signal", training=training, policy=CheckpointPolicy(checkpoint))
    assert facts["resumed_at"] == [2]
    assert same(weights(undisturbed), weights(output))
    assert same_tables(undisturbed, output)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(study, tmp_path):
    undisturbed, _ = study.train("sound", training=SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            resume.Pace, "on_step_begin", lambda self, args, state, control, **_: _cut(state, 3), raising=False
        )
        with kept(tmp_path) as checkpoint, pytest.raises(CutOffError):
            study.train("damaged", training=SHORT, policy=CheckpointPolicy(checkpoint, steps=1))
    newest = newest_step(checkpoint.folder)
    assert newest.name == "step-00000003"
    path = trainer_folder(newest) / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with kept(tmp_path) as checkpoint:
        output, facts = study.train("damaged", training=SHORT, policy=CheckpointPolicy(checkpoint, steps=1))
    assert facts["resumed_at"] == [2]
    assert same(weights(undisturbed), weights(output))


def test_another_config_has_another_folder_and_a_changed_manifest_is_refused(tmp_path):
    other = IDENTITY | {"config": {"learning_rate": 2e-3}}
    assert checkpoint_folder(tmp_path, IDENTITY) != checkpoint_folder(tmp_path, other)
    with kept(tmp_path) as checkpoint:
        path = checkpoint.folder / "manifest.json"
    path.write_text(path.read_text().replace("0.001", "0.003"))
    with pytest.raises(ManifestError, match=r"config.learning_rate is 0.003 there and 0.001 now"), kept(tmp_path):
        pass


def test_a_second_writer_is_refused(tmp_path):
    with kept(tmp_path), pytest.raises(LockedError, match=f"pid {os.getpid()}"), kept(tmp_path):
        pass


@pytest.mark.parametrize("where", ["before", "within"])
def test_a_full_disk_is_said_and_the_checkpoint_before_stays(study, tmp_path, monkeypatch, where):
    real, calls = torch.save, []

    def full(value, path, *args, **kwargs):
        calls.append(path)
        if where == "within" and "00000002" in str(path):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")  # torch's words
        if where == "before":
            usage = shutil.disk_usage(tmp_path)
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
        return real(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    needed = "bytes are needed, 10,000 bytes are free" if where == "before" else "no space left"
    with kept(tmp_path) as checkpoint, pytest.raises(DiskFullError, match=needed):
        study.train("full", training=SHORT, policy=CheckpointPolicy(checkpoint, steps=1))
    assert [path.name for path in checkpoint.folder.glob("*step*")] == ["step-00000001"]
    assert newest_step(checkpoint.folder).name == "step-00000001"


def test_progress_says_step_and_loss(study, tmp_path):
    with kept(tmp_path) as checkpoint:
        output, _ = study.train(
            "progress", training=SHORT.model_copy(update={"logging_steps": 2}), policy=CheckpointPolicy(checkpoint)
        )
        progress = json.loads((checkpoint.folder / "progress.json").read_text())
    log = (
        pd.read_parquet(output / "training.parquet").query("split == 'train' and step == 4").set_index("term")["value"]
    )
    assert (progress["done"], progress["total"], progress["unit"]) == (4, 4, "steps")
    assert (progress["loss"], progress["ce"]) == (log["loss"], log["ce"])


def test_checkpoints_come_by_the_clock(monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Checkpoint(tmp_path, IDENTITY, RUN) as checkpoint:
        policy, due = CheckpointPolicy(checkpoint, seconds=60.0), []
        policy.kept()
        for now[0] in (10.0, 59.0, 60.0, 61.0, 119.0, 121.0):
            due.append(policy.due(1))
            if due[-1]:
                policy.kept()
    assert due == [False, False, True, False, False, True]
    assert not CheckpointPolicy(seconds=0.0).due(1)


def test_the_loss_of_accumulated_batches_is_their_mean(study):
    training = SHORT.model_copy(update={"batch_size": 2, "gradient_accumulation": 2})
    output, _ = study.train("accumulated", training=training)
    log = (
        pd.read_parquet(output / "training.parquet")
        .query("split == 'train'")
        .pivot_table(index="step", columns="term", values="value")
    )
    assert log["loss"].dropna().tolist() == pytest.approx(log["ce"].dropna().tolist(), rel=1e-5)


@pytest.mark.parametrize("group", [2, None])
def test_the_order_of_a_pass_is_its_number_s_alone(group):
    lengths = [3, 9, 1, 7, 7, 2, 8, 4, 6, 5, 1, 2]
    epoch = [0]
    order = DeterministicSampler(lengths, group, 5, lambda: epoch[0])
    orders = []
    for epoch[0] in (0, 1, 2):
        orders.append(list(order))
    epoch[0] = 1
    assert list(DeterministicSampler(lengths, group, 5, lambda: 1)) == list(order) == orders[1]
    assert orders[0] != orders[1] != orders[2]
    assert all(sorted(each) == list(range(12)) for each in orders)


def test_rows_of_similar_length_come_together_only_where_asked():
    """Two tasks of two lengths: grouped, a batch holds one of them; in random order nearly every batch holds both."""
    lengths = [10, 40] * 400

    def mixed(group):
        order = list(DeterministicSampler(lengths, group, 1, lambda: 0))
        batches = [order[i : i + 16] for i in range(0, 800, 16)]
        return sum(len({lengths[row] for row in batch}) == 2 for batch in batches) / len(batches)

    assert mixed(16) <= 0.1
    assert mixed(None) >= 0.99


@pytest.mark.parametrize(("grouped", "strategy"), [(True, "group_by_length"), (False, "random")])
def test_the_trainer_is_told_the_order(grouped, strategy, tmp_path):
    training = TrainingConfig(steps=1, group_by_length=grouped, batch_size=3, gradient_accumulation=4)
    arguments = training_arguments(training, 0, str(tmp_path))
    assert arguments.train_sampling_strategy == strategy
    trainer = SimpleNamespace(args=arguments, rows=SimpleNamespace(lengths=[4, 2, 3]), state=TrainerState(), phases=[])
    assert DistillationTrainer._get_train_sampler(trainer).group == (12 if grouped else None)


def test_tied_weights_are_kept_once_and_other_weights_refused(build_model, tmp_path):
    model, other = build_model("llama", tie_word_embeddings=True), build_model("llama", 1, tie_word_embeddings=True)
    save_trained(model, tmp_path / "w.safetensors")
    load_trained(other, tmp_path / "w.safetensors")
    assert same(trained_tensors(model), trained_tensors(other))
    assert other.lm_head.weight.data_ptr() == other.model.embed_tokens.weight.data_ptr()
    with pytest.raises(ValueError, match="embed_tokens"):
        load_trained(build_model("llama", vocab_size=32, tie_word_embeddings=True), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="absent"):
        load_trained(build_model("llama", num_hidden_layers=4, tie_word_embeddings=True), tmp_path / "w.safetensors")


def test_a_parameter_without_a_gradient_before_the_checkpoint_takes_its_first_step_after_it():
    def made(weights=None):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"always": torch.nn.Linear(3, 3), "later": torch.nn.Linear(3, 3)})
        model.load_state_dict(weights or model.state_dict())
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model, optimizer, *names):
        optimizer.zero_grad()
        sum(model[name](torch.ones(2, 3)).square().sum() for name in names).backward()
        optimizer.step()

    model, optimizer = made()
    step(model, optimizer, "always")
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    state = copy.deepcopy(optimizer_state(model, optimizer))
    again, optimizer_again = made(saved)
    load_optimizer_state(again, optimizer_again, state)
    for pair in ((model, optimizer), (again, optimizer_again)):
        step(*pair, "always", "later")
    assert same(model.state_dict(), again.state_dict())
    assert not same(saved, model.state_dict())


def test_a_board_whose_package_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    from mtkv.training.loggers import reporters

    assert reporters("none", None) == []
    with pytest.raises(ImportError, match=r"report_to: trackio .*pip install trackio"):
        reporters("trackio", None)


def test_the_log_of_a_job_started_again_begins_with_what_was_said_before(tmp_path, capfd):
    log, earlier = tmp_path / "job.log", tmp_path / "kept.log"
    for number in (1, 2, 3):
        log.unlink(missing_ok=True)  # as Snakemake does before it starts a job
        log.touch()
        carry_on(log, earlier)
        said = capfd.readouterr().out
        log.write_text(f"{said}start {number}\n")
    assert [line for line in log.read_text().splitlines() if line.startswith("start ")] == [
        "start 1",
        "start 2",
        "start 3",
    ]
    assert log.read_text().count("started again at") == 2
    carry_on(log, earlier)  # the file was not removed: nothing is said twice
    assert capfd.readouterr().out == ""
