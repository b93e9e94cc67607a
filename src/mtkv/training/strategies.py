"""How a model lies on several GPUs, by name: a YAML file each, with arguments of transformers' TrainingArguments.

They reach accelerate through the Trainer. What a preset must not do is change a result: the batch, the loss and its precision are the
study's, so neither a preset nor the number of processes is in them. Trained weights are float32 under each; bfloat16 is autocast of the
forward, never a strategy's own mixed precision, which would round weights, teachers' KV and router before they are used.
"""

import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.operations import convert_outputs_to_fp32
from transformers import Trainer, TrainingArguments

from mtkv.training.data_parallel import rank, world_size

FOLDER = Path(__file__).parent / "presets"
SINGLE = "single"
NEEDS = {"zero2": "deepspeed", "zero3": "deepspeed"}  # strategy → package, and extra of this one, of the same name


@cache
def _read(strategy: str) -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / f"{strategy}.yaml").read_text(encoding="utf-8")))


def strategies() -> list[str]:
    """Every strategy, `single` first."""
    return [SINGLE, *sorted(path.stem for path in FOLDER.glob("*.yaml"))]


def preset(strategy: str) -> dict[str, Any]:
    """Arguments of TrainingArguments; none for `single`. Raises ValueError for an unknown strategy."""
    if strategy not in strategies():
        raise ValueError(f"resources.train.strategy {strategy!r} is unknown; there are {', '.join(strategies())}")
    return {} if strategy == SINGLE else dict(_read(strategy))


def splits_weights(strategy: str) -> bool:
    """Whether a process holds only a part of every weight (not of gradients and optimiser state alone)."""
    return strategy in ("fsdp2", "zero3")


def on_cpu() -> bool:
    """Whether this machine has no GPU for us."""
    return not torch.cuda.is_available()


def check_strategy(strategy: str) -> None:
    """Raises ImportError when a package is missing, ValueError for a strategy that is unknown or needs GPUs."""
    preset(strategy)
    package = NEEDS.get(strategy)
    if package and importlib.util.find_spec(package) is None:
        raise ImportError(
            f"resources.train.strategy {strategy} needs the package {package}; install it: pip install mtkv[{package}],"
            " or choose fsdp2, which splits the model in the same way and needs nothing"
        )
    if package and on_cpu():
        raise ValueError(
            f"resources.train.strategy {strategy} needs GPUs, and there are none here; ddp and fsdp2 do not"
        )


def join_processes(strategy: str) -> None:
    """Meet the other processes of this training, which the environment names: NCCL with a GPU each, gloo on CPUs."""
    if on_cpu():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if strategy in NEEDS:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(cpu=on_cpu())


def spread_arguments(strategy: str, batch_size: int, **plain: Any) -> TrainingArguments:
    """The Trainer's arguments `plain` for this strategy; `batch_size` rows over all processes.

    Raises ValueError when the processes cannot share the rows evenly.
    """
    if batch_size % world_size():
        raise ValueError(
            f"training.batch_size {batch_size} cannot be shared by {world_size()} processes (resources.train.gpu: {world_size()});"
            " choose a multiple, and a smaller gradient_accumulation where the step shall stay as it is"
        )
    arguments = TrainingArguments(
        **plain,
        **preset(strategy),
        per_device_train_batch_size=batch_size // world_size(),
        per_device_eval_batch_size=batch_size // world_size(),
        use_cpu=world_size() > 1 and on_cpu(),
    )
    arguments._n_gpu = min(
        arguments.n_gpu, 1
    )  # a process has one GPU; of all that it sees the Trainer would make DataParallel
    if strategy == "fsdp2" and arguments.device.type == "cpu":
        # accelerate makes FSDP of several GPUs only, and on CPUs would use DDP without a word; torch's fully_shard works with gloo.
        arguments.distributed_state.distributed_type = DistributedType.MULTI_GPU
    return arguments


def take_over(trainer: Trainer, strategy: str, dtype: str) -> None:
    """Before the training: random numbers of this process's own, and the forward computed in `dtype`.

    Raises RuntimeError when the Trainer did not understand the preset, where accelerate would use DDP without a word; ValueError for an arm
    that the strategy cannot train.
    """
    model: Any = trainer.model
    taken = {"fsdp2": trainer.is_fsdp_enabled} | dict.fromkeys(NEEDS, trainer.is_deepspeed_enabled)
    supervision = getattr(model, "supervision", None)
    if splits_weights(strategy) and supervision is not None and supervision.config.fusion.objective == "injected_ce":
        raise ValueError(
            f"fusion.objective injected_ce runs the student with its weights held fixed, which strategy {strategy} cannot,"
            " because no process has them all; choose ddp or zero2"
        )
    if not taken.get(strategy, True):
        raise RuntimeError(
            f"strategy {strategy} was not taken up by accelerate: {trainer.accelerator.distributed_type}"
        )
    if world_size() > 1:
        torch.manual_seed(torch.initial_seed() + rank())  # else dropout and noise would be the same in every process
    if dtype == "bfloat16":
        kind = next(model.parameters()).device.type
        model.forward = convert_outputs_to_fp32(torch.autocast(kind, torch.bfloat16)(model.forward))
