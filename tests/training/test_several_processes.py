"""Several processes train what one does: DDP and FSDP2 with gloo on CPUs, through the launch that a study uses."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from forked import Forked
from tiny_study import TRAINING, TinyStudy, job, kv, weights
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from mtkv.checkpointing.preemption import SAVED
from mtkv.stages import train_worker
from mtkv.training import launcher
from mtkv.training.data_parallel import blank, collate_share
from mtkv.training.resume import ResumableTrainer
from mtkv.training.strategies import spread_arguments

TWO_TEACHERS = kv(
    fusion={"strategy": "learnable", "entropy": {"strength": 0.1}}, align={"map": "linear", "side": "teacher"}
)
INJECTED = kv(fusion={"strategy": "learnable", "objective": "injected_ce"})
ARMS = {"sft": None, "kv": TWO_TEACHERS, "injected": INJECTED, "relation": kv(loss={"distance": "relation"})}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = TinyStudy(tmp_path_factory.mktemp("study"))
    # 5 batches of 4 and one of 1: three of four processes have no row
    pd.read_parquet(study.paths["train"]).head(21).to_parquet(study.folder / "odd.parquet")
    return study


@pytest.fixture
def words(tmp_path, monkeypatch):
    """The file that forked processes print to; checkpoints lie in the test's own folder."""
    file = tmp_path / "words.txt"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher, "start", lambda command, environment: Forked(command, environment, file))
    return file


def train(study, output, arm, strategy="single", workers=1, rows="train", **changes):
    """One run of an arm; returns weights, log, routing and facts."""
    of_study = job(
        params={"study": "t", "code": "0", "arm": arm, "changes": str(changes)},
        wildcards={"arm": arm, "seed": "42"},
        input=[str(study.folder / f"{rows}.parquet")],
        output=[str(output / "model")],
        log=[str(output / "train.log")],
        resources={"strategy": strategy, "workers": workers, "checkpoint_seconds": 600},
    )
    training = TRAINING.model_validate(TRAINING.model_dump() | changes)
    run = study.run(output, ARMS[arm], training=training, train_rows=study.folder / f"{rows}.parquet")
    facts = train_worker.train(of_study, run)
    log = pd.read_parquet(output / "training.parquet")
    return weights(output), log, pd.read_parquet(output / "routing.parquet"), facts


def assert_same(one, other, tolerance=1e-5, shares=True):
    """Weights, log line by line, routing and counted facts."""
    for name, weight in one[0].items():
        torch.testing.assert_close(
            other[0][name], weight, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )
    logs = [log if shares else log[~log["term"].str.startswith(("share.", "cos."))] for log in (one[1], other[1])]
    first, second = (log.sort_values(["step", "split", "term"], kind="stable", ignore_index=True) for log in logs)
    pd.testing.assert_frame_equal(first[["step", "split", "term"]], second[["step", "split", "term"]])
    np.testing.assert_allclose(first["value"], second["value"], rtol=20 * tolerance, atol=tolerance)
    pd.testing.assert_frame_equal(one[2], other[2], rtol=20 * tolerance)
    for fact in ("steps", "rows_seen", "tokens", "batch_size", "train_rows", "supervised_share"):
        assert one[3][fact] == other[3][fact], fact


@pytest.fixture(scope="module")
def alone(study, tmp_path_factory):
    """What one process gives, once for each setting."""
    found = {}

    def run(arm, rows="train", **changes):
        key = str((arm, rows, sorted(changes.items(), key=str)))
        if key not in found:
            folder = tmp_path_factory.mktemp("alone")
            before = Path.cwd()
            os.chdir(folder)
            try:
                found[key] = train(study, folder / "out", arm, rows=rows, **changes)
            finally:
                os.chdir(before)
        return found[key]

    return run


@pytest.mark.parametrize(
    ("strategy", "workers", "arm", "rows", "changes"),
    [
        ("ddp", 2, "sft", "train", {"gradient_accumulation": 3, "gradient_checkpointing": True}),
        ("ddp", 4, "sft", "odd", {"steps": None, "epochs": 1}),
        ("ddp", 2, "kv", "train", {"gradient_checkpointing": True, "gradient_accumulation": 3}),
        ("ddp", 4, "kv", "odd", {"steps": None, "epochs": 1}),
        ("ddp", 2, "injected", "train", {"gradient_accumulation": 2}),
        ("ddp", 4, "injected", "odd", {"steps": None, "epochs": 1}),
        ("ddp", 2, "relation", "odd", {"steps": 6}),
        ("fsdp2", 2, "sft", "train", {"gradient_accumulation": 3, "gradient_checkpointing": True}),
        ("fsdp2", 4, "kv", "odd", {"steps": None, "epochs": 1, "gradient_accumulation": 2}),
        ("fsdp2", 2, "kv", "train", {"lora": {"rank": 4}}),
    ],
)
def test_processes_train_what_one_does(study, alone, words, tmp_path, strategy, workers, arm, rows, changes):
    many = train(study, tmp_path / "out", arm, strategy, workers, rows, **changes)
    assert_same(alone(arm, rows, **changes), many, shares=strategy == "ddp")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".training-")]


def test_bfloat16_is_the_same_autocast_under_fsdp_and_ddp(study, words, tmp_path):
    ddp = train(study, tmp_path / "ddp", "kv", "ddp", 2, dtype="bfloat16")
    forget_checkpoints(tmp_path)
    fsdp = train(study, tmp_path / "fsdp", "kv", "fsdp2", 2, dtype="bfloat16")
    # bfloat16 has 8 bits: equal sums in another order differ by more than float32's
    assert_same(ddp, fsdp, tolerance=1e-3, shares=False)
    assert all(weight.dtype == torch.float32 for weight in fsdp[0].values())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_trained_weights_are_float32_and_saved_as_the_student_is(study, words, tmp_path, monkeypatch, strategy):
    began = ResumableTrainer.begin

    def write_formats(self):
        formats = {str(parameter.dtype) for parameter in self.model_wrapped.parameters()}
        (tmp_path / f"formats-{os.environ['RANK']}").write_text(" ".join(formats))
        began(self)

    monkeypatch.setattr(ResumableTrainer, "begin", write_formats)
    monkeypatch.setitem(study.models, "student", study.models["student"].model_copy(update={"dtype": "bfloat16"}))
    saved, *_ = train(study, tmp_path / "out", "kv", strategy, 2, steps=1, dtype="bfloat16")
    assert [path.read_text() for path in tmp_path.glob("formats-*")] == ["torch.float32"] * 2
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}


def forget_checkpoints(folder):
    """The same run once more, from the start."""
    for path in sorted((folder / "checkpoints").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def test_fsdp_leaves_each_process_a_part_of_the_weights(study, words, tmp_path, monkeypatch):
    began = ResumableTrainer.begin

    def count(self):
        held = sum(p.to_local().numel() for p in self.model_wrapped.parameters())
        whole = sum(p.numel() for p in self.model_wrapped.parameters())
        (tmp_path / f"held-{os.environ['RANK']}").write_text(f"{held} {whole}")
        began(self)

    monkeypatch.setattr(ResumableTrainer, "begin", count)
    train(study, tmp_path / "out", "kv", "fsdp2", 2, steps=1)
    held, whole = zip(*(map(int, path.read_text().split()) for path in tmp_path.glob("held-*")), strict=True)
    assert sum(held) == whole[0] == whole[1]
    assert max(held) < 0.6 * whole[0]


def stops_at(monkeypatch, step):
    """One of the processes has SLURM's signal sent to the launcher, or to itself when it is alone."""
    must_save = ResumableTrainer.must_save

    def told(self):
        if self.state.global_step == step and os.environ.get("RANK", "0") == "0":
            os.kill(os.getppid() if "RANK" in os.environ else os.getpid(), signal.SIGUSR1)
            deadline = time.monotonic() + 10
            while not self.policy.asked and time.monotonic() < deadline:
                time.sleep(0.01)
        return must_save(self)

    monkeypatch.setattr(ResumableTrainer, "must_save", told)


@pytest.mark.parametrize(
    "path",
    [
        [("ddp", 4), ("single", 1)],
        [("single", 1), ("fsdp2", 2), ("ddp", 2)],
        [("fsdp2", 4), ("fsdp2", 2)],
    ],
    ids=str,
)
def test_a_training_goes_on_with_another_number_of_processes(study, alone, words, tmp_path, monkeypatch, path):
    changes = {"gradient_accumulation": 2, "logging_steps": 3, "eval_steps": 4, "steps": 8}
    for number, (strategy, workers) in enumerate(path[:-1]):
        with monkeypatch.context() as patch:
            stops_at(patch, 2 + 3 * number)
            with pytest.raises(SystemExit) as stopped:
                train(study, tmp_path / "out", "kv", strategy, workers, **changes)
            assert stopped.value.code == SAVED
    strategy, workers = path[-1]
    done = train(study, tmp_path / "out", "kv", strategy, workers, **changes)
    assert_same(alone("kv", **changes), done, shares=False)
    assert done[3]["resumed_at"] == [2 + 3 * number for number in range(len(path) - 1)]


def test_a_process_that_fails_ends_the_others_and_is_heard(study, words, tmp_path, monkeypatch):
    began = ResumableTrainer.begin

    def fail(self):
        if os.environ["RANK"] == "1":
            raise ValueError("this one fails")
        began(self)

    monkeypatch.setattr(ResumableTrainer, "begin", fail)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="code 1"):
        train(study, tmp_path / "out", "sft", "ddp", 2)
    assert time.monotonic() - started < 60
    assert "this one fails" in words.read_text()
    assert not (tmp_path / "out/model").exists()


def test_what_cannot_be_spread_is_refused_in_words(study, words, tmp_path):
    for strategy, workers, arm, message in (
        ("ddp", 3, "sft", "batch_size 4 cannot be shared by 3 processes"),
        ("fsdp2", 2, "injected", "injected_ce"),
        ("zero2", 2, "sft", "deepspeed"),
    ):
        with pytest.raises(RuntimeError):
            train(study, tmp_path / "out", arm, strategy, workers)
        assert message in words.read_text(), strategy


def test_shares_are_the_batch(study):
    class Rows:
        def collate(self, indices):
            rows = torch.tensor(indices)
            kv_sample = torch.arange(len(rows)).repeat_interleave(2)
            return {
                "input_ids": rows[:, None].expand(-1, 3),
                "attention_mask": torch.ones(len(rows), 3),
                "labels": rows[:, None].expand(-1, 3),
                "kv_sample": kv_sample,
                "kv_position": kv_sample,
                "teacher_kv": [torch.ones(len(kv_sample), 1, 2, 4)],
            }

    for count, processes in ((8, 4), (6, 4), (1, 4), (3, 2)):
        parts = [collate_share(Rows(), process, processes, list(range(10, 10 + count))) for process in range(processes)]
        counted = [part["labels"][(part["labels"] != -100).any(1)][:, 0].tolist() for part in parts]
        assert [row for rows in counted for row in rows] == list(range(10, 10 + count))
        assert sum(len(part["kv_sample"]) for part in parts) == 2 * count
        assert max(len(c) for c in counted) - min(len(c) for c in counted) <= 1
    empty = blank(Rows().collate([1]))
    assert empty["attention_mask"].sum() == 0
    assert len(empty["teacher_kv"][0]) == 0


def test_the_launch_starts_real_processes(study, alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_same(alone("kv"), train(study, tmp_path / "out", "kv", "ddp", 2))


def test_one_process_uses_one_of_the_gpus_it_sees(tmp_path, monkeypatch):
    """transformers would put the model into DataParallel, with the rows of a step once for each GPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    plain = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=4)
    ours = spread_arguments("single", 4, output_dir=str(tmp_path))
    assert (plain.n_gpu, plain.train_batch_size) == (2, 8)
    assert (ours.n_gpu, ours.train_batch_size) == (1, 4)
    assert ours.parallel_mode != ParallelMode.NOT_DISTRIBUTED
