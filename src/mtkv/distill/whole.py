"""The trained model in one process and in its own number format, however it lay while it was trained."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from mtkv.distill.processes import rank
from mtkv.distill.weights import trained_tensors


@torch.no_grad()
def whole(trainer: Trainer, apart: bool, make: Callable[[], Any]) -> Any:
    """The trainer's model where it can be saved as it is; else (`apart`: split over processes, or its frozen weights quantised) a new one
    from `make` with what was trained.

    `make` may leave out parts of the model that are not saved. None in all processes but the first. Collective. Raises KeyError when
    `make` has a trained weight that the trainer's model lacks.
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
