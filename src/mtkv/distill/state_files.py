"""The files of a checkpoint: of the weights what is trained; optimizer and schedule the same for any number of processes."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from mtkv.distill.optimiser_state import split_state, whole_state
from mtkv.distill.weights import load_trained, save_trained, tensor_bytes, trained_tensors

WEIGHTS = "model.safetensors"


class StateFilesTrainer(Trainer):
    """A Trainer that reads and writes its checkpoints' weights and optimizer in this way."""

    model: Any
    optimizer: Any
    lr_scheduler: Any

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Trained weights only, without the Trainer's pickled arguments."""
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_trained(self.model, folder / WEIGHTS, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As `_save` wrote it, strictly."""
        load_trained(model or self.model, Path(resume_from_checkpoint) / WEIGHTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The same files whether FSDP splits the state or not, so that any number of processes can go on from them."""
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        state = whole_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As `_save_optimizer_and_scheduler` wrote it."""
        if checkpoint is None or not self.is_fsdp_enabled:
            return super()._load_optimizer_and_scheduler(checkpoint)
        state, schedule = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        self.optimizer.load_state_dict(split_state(self.optimizer, state))
        self.lr_scheduler.load_state_dict(schedule)

    def state_bytes(self, finished: bool) -> int:
        """Room that a checkpoint needs; the log and the counters are small beside it."""
        state = (
            [value for values in self.optimizer.state.values() for value in values.values()] if self.optimizer else []
        )
        moments = {} if finished else {str(i): v for i, v in enumerate(state) if torch.is_tensor(v)}
        return tensor_bytes(trained_tensors(self.model) | moments)


def trainer_folder(checkpoint: Path) -> Path:
    """The Trainer's own folder in a checkpoint."""
    return next(checkpoint.glob("checkpoint-*"))
