"""Training that survives: a Trainer whose checkpoints hold all that a bit-identical continuation on a CPU needs.

A checkpoint is what transformers' Trainer writes (optimiser, scheduler, random states, `TrainerState` with the log), of the weights
only what is trained, and the counters; any number of processes can go on from it. The last one, written after the last step, has no
optimiser: a job that dies after it writes its outputs without training again.
"""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from mtkv.training.checkpointing import (
    CheckpointPolicy,
    load_optimizer_state,
    load_trained,
    optimizer_state,
    save_trained,
    tensor_bytes,
    trained_tensors,
)
from mtkv.training.data_parallel import means
from mtkv.training.loggers import reporters
from mtkv.training.metrics import MetricAccumulator, sum_metrics


class Pace(TrainerCallback):
    """Asks after each step whether to save, puts the counters back when training begins, and reports progress."""

    def __init__(self, trainer: "ResumableTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.trainer.begin()
        self.trainer.policy.report(state.global_step, state.max_steps, {})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        last = state.global_step >= state.max_steps  # `run` keeps that one
        control.should_save = not last and self.trainer.must_save()

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, **more: Any) -> None:
        facts = {name: more["logs"][name] for name in ("loss", "ce") if name in more["logs"]}
        if facts:
            self.trainer.policy.report(state.global_step, state.max_steps, facts)


WEIGHTS = "model.safetensors"


def trainer_folder(checkpoint: Path) -> Path:
    """The Trainer's own folder in a checkpoint."""
    return next(checkpoint.glob("checkpoint-*"))


class ResumableTrainer(Trainer):
    """A Trainer to `run()` instead of `train()`; it saves its state as `policy` says. Subclasses count in `counters`."""

    model: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *, policy: CheckpointPolicy, **kwargs: Any) -> None:
        super().__init__(callbacks=[*reporters(policy.report_to, policy.reports), Pace(self)], **kwargs)
        self.policy = policy
        self.counters = MetricAccumulator()
        self.keeps = self._agreed(lambda: policy.checkpoint is not None)
        self._newest: Path | None = None
        self._started = time.monotonic()
        self._stopping = False

    def run(self) -> None:
        """Train from the newest checkpoint, or from the start; afterwards state, weights and counters are those of the last step."""
        self._newest = self._agreed(self.policy.resumed)
        saved = self._saved_counters()
        if self._newest is not None and saved.finished:
            self._restore_finished(self._newest, saved)
            return
        if self._newest is not None:
            self.args.eval_on_start = False  # its line is in the log already
        self.train(resume_from_checkpoint=str(trainer_folder(self._newest)) if self._newest else None)
        self.counters.finished = True
        self._count_time()
        self._keep()

    def begin(self) -> None:
        """Called when the Trainer has set its counters to zero: put back the checkpoint's."""
        self._started = time.monotonic()
        self.policy.kept()
        if self._newest is None:
            return
        self.counters = self._saved_counters()
        self._tr_loss = torch.tensor(self.counters.loss, device=self.args.device)
        self._globalstep_last_logged = self.counters.logged
        self._total_loss_scalar = self.counters.total_loss
        self._initial_global_step = 0

    def must_save(self) -> bool:
        """Whether to save after the step that has just ended: it is time, or a process was told to stop. The same in all processes."""
        if not self.keeps:
            return False
        due = self.is_world_process_zero() and self.policy.due(self.state.global_step)
        asked = torch.tensor([float(due), float(self.policy.asked)], device=self.args.device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        self._stopping = bool(asked[1])
        return bool(asked.any())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """What the Trainer calls to save: write a checkpoint; a training that was told to stop ends here."""
        self._keep()
        if self._stopping and self.policy.preemption is not None:
            self.policy.preemption.leave(f"step {self.state.global_step} of {self.state.max_steps}")

    def _keep(self) -> None:
        """Write a checkpoint together: the first process into a folder of its own choice, the others beside it."""
        if not self.keeps:
            return
        self._count_time()
        self.counters.loss = means({"loss": float(self._tr_loss)}, self.args.device)["loss"]
        self.counters.total_loss = float(self._total_loss_scalar)
        self.counters.logged = self._globalstep_last_logged
        if self.policy.checkpoint is not None:
            self.policy.checkpoint.save(self.state.global_step, self._write, self.state_bytes(self.counters.finished))
            self.policy.kept()
        else:
            self._write(None)

    def _count_time(self) -> None:
        now = time.monotonic()
        self.counters.seconds, self._started = self.counters.seconds + now - self._started, now

    def _write(self, folder: Path | None) -> None:
        folder = self._agreed(lambda: folder)
        counted = sum_metrics(gather_object([self.counters]))
        home, self.args.output_dir = self.args.output_dir, str(folder)
        self.args.save_only_model = self.counters.finished
        try:
            super()._save_checkpoint(self.model, None)
        except RuntimeError as error:
            if "inline_container" in str(error):  # all that torch.save says of a full disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        finally:
            self.args.output_dir = home
        self.accelerator.wait_for_everyone()
        if self.counters.finished:
            self._save_rng_state(str(trainer_folder(folder)))  # a control may draw in the outputs
        if self.is_world_process_zero():
            counted.save(folder)
        self.accelerator.wait_for_everyone()

    def _restore_finished(self, newest: Path, saved: MetricAccumulator) -> None:
        folder = trainer_folder(newest)
        load_trained(self.model, folder / WEIGHTS)
        self.state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        self._load_rng_state(str(folder))
        self.counters = saved

    def _saved_counters(self) -> MetricAccumulator:
        """The checkpoint's in the first process; in the others what is counted apart is zero."""
        if self._newest is None:
            return MetricAccumulator()
        counters = MetricAccumulator.load(self._newest)
        return counters if self.is_world_process_zero() else counters.without_parts()

    def _agreed(self, decide: Callable[[], Any]) -> Any:
        """What the first process decides, in all of them."""
        decided = [decide() if self.is_world_process_zero() else None]
        if self.args.world_size > 1:
            broadcast_object_list(decided)
        return decided[0]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Trained weights only, without the Trainer's pickled arguments."""
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_trained(self.model, folder / WEIGHTS, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load what `_save` wrote. Raises ValueError when it does not fit the model."""
        load_trained(model or self.model, Path(resume_from_checkpoint) / WEIGHTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The same files whether FSDP splits the state or not, so that any number of processes can go on from them."""
        if self.is_deepspeed_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        state = optimizer_state(self.model, self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load what `_save_optimizer_and_scheduler` wrote."""
        if checkpoint is None or self.is_deepspeed_enabled:
            return super()._load_optimizer_and_scheduler(checkpoint)
        state, schedule = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        load_optimizer_state(self.model, self.optimizer, state)
        self.lr_scheduler.load_state_dict(schedule)

    def state_bytes(self, finished: bool) -> int:
        """Bytes that a checkpoint takes, but for log and counters, which are small; a `finished` one holds no optimiser."""
        state = (
            [value for values in self.optimizer.state.values() for value in values.values()] if self.optimizer else []
        )
        moments = {} if finished else {str(i): v for i, v in enumerate(state) if torch.is_tensor(v)}
        return tensor_bytes(trained_tensors(self.model) | moments)
