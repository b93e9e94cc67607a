"""Checkpoints of one training: when and where they are written (`CheckpointPolicy`), and what of model and optimiser they hold.

In: a model and an optimiser as they lie, whole or split over processes (FSDP's DTensor, ZeRO). Out: whole tensors on the CPU, the
same files for any number of processes; they are split anew for as many as there are when training goes on. Of a model they hold what is
trained and the buffers of its state. `gather_model` makes the trained model whole in one process, to save it.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from mtkv.checkpointing.identity import job_identity, job_run
from mtkv.checkpointing.preemption import Preemption
from mtkv.checkpointing.store import ROOT, Checkpoint, carry_on
from mtkv.training.data_parallel import rank


def split_like(x: Tensor, like: Tensor) -> Tensor:
    """This process's part of `x`, split as `like` is. All processes have the same `x`."""
    if not isinstance(like, DTensor):
        return x
    own = x.to(like.device, like.dtype)
    return distribute_tensor(own, like.device_mesh, like.placements, src_data_rank=None)


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that are trained, tied ones once, and persistent buffers, by name."""
    kept = model.state_dict().keys()
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad} | {
        name: tensor for name, tensor in model.named_buffers() if name in kept
    }


def save_trained(model: nn.Module, path: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the trained tensors as safetensors; `state`: where their values are taken from when the model's own are shards."""
    source = trained_tensors(model) if state is None else {name: state[name] for name in trained_tensors(model)}
    save_file({name: tensor.detach().contiguous() for name, tensor in source.items()}, path)


@torch.no_grad()
def load_trained(model: nn.Module, path: Path) -> None:
    """Put saved tensors back, in place. Raises ValueError when names, shapes or formats are not the model's."""
    saved, own = load_file(path), trained_tensors(model)
    form = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in own.items()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in saved.items()}
    if different := sorted(name for name in form.keys() | found.keys() if form.get(name) != found.get(name)):
        name = different[0]
        raise ValueError(
            f"{path}: {name} is {found.get(name, 'absent')}, but the model trained now has {form.get(name, 'none')};"
            " the checkpoint is of other code: remove its folder to train from the start"
        )
    for name, tensor in own.items():
        tensor.copy_(split_like(saved[name], tensor))


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The state of an optimiser of `model`'s parameters, whole and on the CPU, by the parameters' names. Collective; with several processes
    only the first one's is filled."""
    return get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_optimizer_state(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put back what `optimizer_state` gave, split as the parameters are now. All processes have the same `state`."""
    optimizer = getattr(
        optimizer, "optimizer", optimizer
    )  # torch takes an empty step here, which accelerate's wrapper may leave out
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True, strict=False))
    for name, parameter in model.named_parameters():
        if (
            name not in state["state"]
        ):  # had no gradient yet: torch gave it a state of one step, and its first would be a second
            optimizer.state.pop(parameter, None)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors' values take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@torch.no_grad()
def gather_model(trainer: Trainer, apart: bool, make: Callable[[], Any]) -> Any:
    """The trained model in one piece, to be saved by the first process; None in the others. Collective.

    It is the trainer's own, or where that cannot be saved as it is (`apart`: split over processes, or frozen weights quantised) a new one
    from `make` with the trained weights copied in. `make` may leave out parts that are not saved. Raises KeyError when it has a trained
    weight that the trainer's model lacks.
    """
    if not apart:
        return trainer.model if rank() == 0 else None
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if rank() != 0:
        return None
    unset_hf_deepspeed_config()  # else ZeRO-3 would split this one too, together with processes that are not here
    made = make()
    for name, tensor in trained_tensors(made).items():
        tensor.copy_(state[name])
    return made


@dataclass
class CheckpointPolicy:
    """When a training saves its state, where, and to whom it reports; `CheckpointPolicy()` saves nothing.

    With several processes each has its `preemption`, only the first the `checkpoint`. `seconds` of wall time between checkpoints, and
    optionally every so many `steps` too. `report_to` and `reports`: see `mtkv.training.loggers`.
    """

    checkpoint: Checkpoint | None = None
    preemption: Preemption | None = None
    seconds: float = 600.0
    steps: int | None = None
    report_to: str = "none"
    reports: Path | None = None
    _last: float = field(default_factory=time.monotonic, repr=False)

    def resumed(self) -> Path | None:
        """The checkpoint to go on from, noted there as a resume; None where there is none."""
        newest = self.checkpoint.newest() if self.checkpoint else None
        if self.checkpoint and newest:
            self.checkpoint.note_resume(int(newest.name.removeprefix("step-")))
        return newest

    def due(self, step: int) -> bool:
        """Whether it is time for a checkpoint after this step."""
        if self.checkpoint is None:
            return False
        return time.monotonic() - self._last >= self.seconds or bool(self.steps and step % self.steps == 0)

    @classmethod
    @contextmanager
    def of(cls, job: "SavedJob") -> Iterator[Self]:
        """Inside, this process alone writes the checkpoints of `job`, and is told when it must save and stop."""
        with Checkpoint(ROOT, job.identity, job.run) as checkpoint, Preemption() as preemption:
            carry_on(job.log, checkpoint.folder / "job.log")
            yield cls(checkpoint, preemption, job.seconds, report_to=job.report_to, reports=job.log.with_suffix(""))

    @property
    def asked(self) -> bool:
        """Whether this process was told to save and stop."""
        return self.preemption is not None and self.preemption.asked

    def kept(self) -> None:
        """A checkpoint was written: the time to the next counts from now."""
        self._last = time.monotonic()

    def report(self, step: int, steps: int, facts: dict[str, Any]) -> None:
        """Write the progress file, with what the GPU does where there is one."""
        if self.checkpoint is not None:
            self.checkpoint.progress(step, steps, "steps", **facts, **gpu_facts())

    def finish(self) -> list[int]:
        """The outputs are written: only the record of the last step stays. Returns the steps at which the training was resumed."""
        if self.checkpoint is None:
            return []
        resumed_at = self.checkpoint.resumed_at
        self.checkpoint.finish(keep=1)
        return resumed_at


class SavedJob(BaseModel):
    """Of a Snakemake job of the rule `train` what its checkpoints need, in whichever process they are written.

    `identity` and `run`: see `mtkv.checkpointing.identity`; `seconds` between checkpoints.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: dict[str, Any]
    run: dict[str, Any]
    log: Path
    seconds: float = CheckpointPolicy.seconds
    report_to: str = CheckpointPolicy.report_to

    @classmethod
    def of(cls, job: Any) -> Self:
        """Of the `snakemake` object of a script; what is not in its `resources` is the default."""
        asked = {"seconds": job.resources.get("checkpoint_seconds"), "report_to": job.resources.get("report_to")}
        given = {name: value for name, value in asked.items() if value is not None}
        return cls(identity=job_identity(job, "arms"), run=job_run(job, "arms"), log=Path(job.log[0]), **given)


def gpu_facts() -> dict[str, float]:
    """Peak memory of this process in MB and utilisation in percent (where the package nvidia-ml-py is); empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    facts = {"gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6, 1)}
    try:
        return facts | {"gpu_utilisation": float(torch.cuda.utilization())}
    except (ImportError, RuntimeError):
        return facts
