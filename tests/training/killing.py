"""Trains two arms again and again, kills the training at random points and lets the next process go on. A script for `test_resume`.

`python killing.py FOLDER KILLS SEED` writes FOLDER/result.json. Torch is imported once; every attempt is a forked process of its own.
A kill comes either from outside, at a random moment of the training, or at a random one of the calls by which a checkpoint is
written, before or after it.
"""

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
import torch
from safetensors.torch import load_file
from tiny_study import TRAINING, TinyStudy, kv
from transformers.utils import logging

from mtkv.checkpointing.store import Checkpoint
from mtkv.training import resume
from mtkv.training.checkpointing import CheckpointPolicy

STEPS = 8
SAVED_EVERY = 2
EVENTS = ((os, "fsync"), (os, "replace"), (os, "rename"), (shutil, "rmtree"), (torch, "save"))
FILES = ("model/model.safetensors", "training.parquet", "routing.parquet")


def with_dropout(study: TinyStudy) -> None:
    """The student draws random numbers in every step."""
    path = Path(study.models["student"].name) / "config.json"
    config = json.loads(path.read_text()) | {"attention_dropout": 0.1}
    path.write_text(json.dumps(config))


def train(study: TinyStudy, arm: str, output: Path, policy: CheckpointPolicy | None) -> dict:
    """One attempt at one arm."""
    changes = {"steps": STEPS, "eval_steps": 3, "logging_steps": 3, "eval_rows": 4}
    if arm == "kv":  # annealed: another part of the layers is trained before the middle than after it
        changes |= {"steps": STEPS // 2, "gradient_accumulation": 2}
    training = TRAINING.model_copy(update=changes)
    learnable = kv(fusion={"strategy": "learnable"}, loss={"gamma": 0.0, "anneal": 0.5}) if arm == "kv" else None
    study.folder, home = output.parent.parent, study.folder
    try:
        return study.train(output.name, learnable, training=training, policy=policy)[1]
    finally:
        study.folder = home


def kill_at(event: int) -> list[int]:
    """Kill this process at its `event`-th call of `EVENTS`, before it when that number is even; returns the counter."""
    count = [0]

    def wrapped(call):
        def counted(*args, **kwargs):
            count[0] += 1
            if count[0] == event and event % 2 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if count[0] == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    for module, name in EVENTS:
        setattr(module, name, wrapped(getattr(module, name)))
    return count


def attempt(study: TinyStudy, arm: str, output: Path, root: Path | None, event: int = 0, delay: float = 0.0) -> int:
    """Run one attempt in a process of its own, killed at `event` or `delay` seconds into its training; its wait status."""
    began, begins = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for stream in (1, 2):
                os.dup2(
                    os.open(output.parents[1] / f"{output.name}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream
                )
            begin = resume.ResumableTrainer.begin
            resume.ResumableTrainer.begin = lambda self: (begin(self), os.write(begins, b"x"))[0]
            count = kill_at(event)
            if root is None:
                facts = train(study, arm, output, None)
            else:
                with Checkpoint(root, {"arm": arm}, {"study": "tiny", "stage": "arms", "arm": arm}) as checkpoint:
                    facts = train(study, arm, output, CheckpointPolicy(checkpoint, steps=SAVED_EVERY))
            (output / "facts.json").write_text(json.dumps(facts | {"events": count[0]}))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(begins)
    if delay and os.read(began, 1):
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    os.close(began)
    return os.waitpid(pid, 0)[1]


def outcome(output: Path) -> dict:
    """What the attempt left: the files, and the facts that do not tell of time."""
    facts = json.loads((output / "facts.json").read_text())
    weights = load_file(output / FILES[0])
    tables = {name: pd.read_parquet(output / name).to_csv(index=False) for name in FILES[1:]}
    timeless = {name: value for name, value in facts.items() if name not in ("train_seconds", "resumed_at", "events")}
    return {"weights": weights, "tables": tables, "facts": timeless, "resumed_at": facts["resumed_at"]}


def differing(one: dict, other: dict) -> list[str]:
    """What is not equal to the bit."""
    names = [name for name, value in one["weights"].items() if not torch.equal(value, other["weights"][name])]
    return names + [part for part in ("tables", "facts") if one[part] != other[part]]


def chain(
    study: TinyStudy, arm: str, root: Path, output: Path, rng: random.Random, events: int, seconds: float
) -> dict:
    """Attempts at one training until one of them ends by itself."""
    kills = {"outside": 0, "saving": 0, "half_written": 0}
    while True:
        saving = rng.random() < 0.5
        event, delay = (rng.randint(1, events), 0.0) if saving else (0, rng.uniform(0.0, 0.7 * seconds))
        status = attempt(study, arm, output, root, event, delay)
        if os.WIFEXITED(status):
            return {"status": os.WEXITSTATUS(status), "kills": kills}
        kills["saving" if saving else "outside"] += 1
        kills["half_written"] += bool(list(root.glob("*/.step-*.tmp")))


def main(folder: Path, wanted: int, seed: int) -> None:
    logging.set_verbosity_error()
    rng = random.Random(seed)
    study = TinyStudy(folder / "study")
    with_dropout(study)
    for arm in ("sft", "kv"):
        train(study, arm, folder / "warm" / "arms" / arm, None)  # what a first step imports and compiles
    gc.freeze()  # else every attempt collects what is here
    result: dict = {"kills": {"outside": 0, "saving": 0, "half_written": 0}, "chains": []}
    known = {}
    for arm in ("sft", "kv"):
        undisturbed = folder / arm / "arms" / "undisturbed"
        undisturbed.mkdir(parents=True)
        assert attempt(study, arm, undisturbed, None) == 0, "see the log"
        kept = undisturbed.with_name("kept")
        kept.mkdir()
        assert attempt(study, arm, kept, folder / arm / "kept") == 0, "see the log"
        facts = json.loads((kept / "facts.json").read_text())
        known[arm] = (outcome(undisturbed), facts["events"], facts["train_seconds"])
        result["chains"].append({"arm": arm, "differing": differing(known[arm][0], outcome(kept)), "resumed_at": []})
    while sum(result["kills"][kind] for kind in ("outside", "saving")) < wanted:
        number = len(result["chains"])
        arm = ("sft", "kv")[number % 2]
        reference, events, seconds = known[arm]
        output = folder / arm / "arms" / f"chain{number}"
        output.mkdir()
        ended = chain(study, arm, folder / arm / f"checkpoints{number}", output, rng, events, seconds)
        assert ended["status"] == 0, f"see {output}.log"
        for kind, count in ended["kills"].items():
            result["kills"][kind] += count
        found = outcome(output)
        result["chains"].append(
            {"arm": arm, "differing": differing(reference, found), "resumed_at": found["resumed_at"], **ended}
        )
    (folder / "result.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
