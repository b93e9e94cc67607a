"""GPU memory against the study's models, by a stated formula: N parameters of b bytes, B rows of T tokens, L layers of width h, V words.

training     16·N (weights, gradients, AdamW's two moments, all float32 whatever format they are saved in), with adapters b·N; over n GPUs
             divided by n (fsdp2, zero3) or all but the weights (zero2); in bfloat16 2·N on each GPU where the weights are float32 (the
             copies of autocast); and activations 34·B·T·h·L (Korthikanti et al., 2022, arXiv 2205.05198, eq. 2 without attention
             scores; with checkpointing 2·B·T·h·L + 34·B·T·h), and 8·B·T·V of logits. Online teachers add their b·N.
teacher, predictions   b·N and 1 GB; the batch is fitted to the rest by the stages themselves.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtkv.ops.cost_model.model_sizes import HIDDEN, LAYERS, local_folder, model_size
from mtkv.ops.doctor.checks import DoctorContext, Finding, check
from mtkv.ops.doctor.gpus import capacity

if TYPE_CHECKING:
    from mtkv.config.arms import Arm
    from mtkv.config.models import ModelConfig
    from mtkv.config.resources import TrainResources

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
NAMED = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bm])(?![A-Za-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class ModelShape:
    """What the formula needs to know of a model."""

    parameters: float
    layers: int
    hidden: int
    vocabulary: int


@check("gpu memory")
def gpu_memory(patient: DoctorContext) -> Iterator[Finding]:
    """The memory each GPU job needs against that of one GPU."""
    room, where = capacity(patient)
    for name, config, needed in demands(patient):
        if needed is None:
            yield Finding(
                "note",
                f"{name}: size of {config.name} unknown until it is fetched",
                "snakemake assets, then look again",
            )
        elif room is None:
            yield Finding("note", f"{name}: about {needed:.1f} GB of GPU memory")
        elif needed > room:
            fix = (
                "smaller training.batch_size, gradient_checkpointing: true, lora, resources.train.strategy: fsdp2 with more GPUs"
                if name.startswith("train")
                else "a GPU with more memory, or a 16-bit dtype"
            )
            yield Finding("error", f"{name}: about {needed:.1f} GB, {where} has {room:.0f} GB", fix)
        elif needed > 0.85 * room:
            yield Finding(
                "warning",
                f"{name}: about {needed:.1f} GB of the {room:.0f} GB of {where}",
                "a smaller batch_size is safer",
            )
        else:
            yield Finding("ok", f"{name}: about {needed:.1f} GB of the {room:.0f} GB of {where}")


def demands(patient: DoctorContext) -> Iterator[tuple[str, "ModelConfig", float | None]]:
    """(job, its model, GB on one GPU) of each kind of GPU job; None for a model of unknown size."""
    study, resources = patient.study, patient.study.resources
    if resources.teachers.gpu and study.teachers.mode == "stored":
        for teacher in study.teachers_used():
            config = study.teachers.models[teacher]
            yield f"teacher {teacher}", config, reading_gb(config, resources.teachers.gpu)
    if resources.train.gpu:
        for name, needed in largest_training(patient):
            yield f"train {name}", study.student, needed
    if resources.predict.gpu:
        for name in dict.fromkeys(arm.model for arm in study.arms.values()):
            config = study.student if name == "student" else study.teachers.models[name]
            yield f"predict {name}", config, reading_gb(config, 1)


def largest_training(patient: DoctorContext) -> Iterator[tuple[str, float | None]]:
    """The trained arm that takes most memory and its GB (None where no size is known): if it fits, all do. Nothing without training."""
    study = patient.study
    found = {
        name: training_gb(study.student, arm, study.resources.train, along(patient, arm))
        for name, arm in study.arms.items()
        if arm.training
    }
    known = {name: needed for name, needed in found.items() if needed is not None}
    if known:
        yield max(known.items(), key=lambda entry: entry[1])
    elif found:
        yield next(iter(found)), None


def along(patient: DoctorContext, arm: "Arm") -> list["ModelConfig"]:
    """The online teachers of an arm, which stay in memory while it trains."""
    teachers = patient.study.teachers
    names = [
        *(arm.kv.teachers if arm.kv and teachers.mode == "online" else []),
        *(arm.logits.teachers if arm.logits else []),
    ]
    return [teachers.models[name] for name in dict.fromkeys(names) if name in teachers.models]


def reading_gb(config: "ModelConfig", processes: int) -> float | None:
    """GB per GPU of a model that only reads, split over `processes` GPUs."""
    shape = shape_of(config)
    return None if shape is None else shape.parameters * BYTES[config.dtype] / 1e9 / max(1, processes) + 1


def training_gb(
    config: "ModelConfig", arm: "Arm", asked: "TrainResources", teachers: list["ModelConfig"]
) -> float | None:
    """GB on each GPU while an arm trains, by the formula of this module."""
    training, shape = arm.training, shape_of(config)
    if training is None or shape is None or any(shape_of(teacher) is None for teacher in teachers):
        return None
    size, processes = BYTES[config.dtype] if training.lora else BYTES["float32"], asked.workers
    weights, rest = shape.parameters * size, 0.0 if training.lora else 3 * shape.parameters * size
    shared = {"fsdp2": (processes, processes), "zero3": (processes, processes), "zero2": (1, processes)}.get(
        asked.strategy, (1, 1)
    )
    tokens = max(1, training.batch_size // processes) * training.max_length
    layers = 2 * shape.layers + 34 if training.gradient_checkpointing else 34 * shape.layers
    wide = 2 if training.dtype == "float32" else 1  # the formula counts 16-bit activations
    copies = 2 * shape.parameters if training.dtype == "bfloat16" and size == BYTES["float32"] else 0
    activations = wide * tokens * shape.hidden * layers + 8 * tokens * shape.vocabulary
    readers = sum(found.parameters * BYTES[teacher.dtype] for teacher in teachers if (found := shape_of(teacher)))
    return float(weights / shared[0] + rest / shared[1] + copies + activations + readers) / 1e9


def shape_of(config: "ModelConfig") -> ModelShape | None:
    """Size and widths of a model that is here; else those that its name suggests (`-7B-`), or None."""
    size, folder = model_size(config), local_folder(config)
    if size is None or folder is None:
        found = NAMED.search(config.name.rpartition("/")[2])
        parameters = float(found[1]) * (1e9 if found[2] in "bB" else 1e6) if found else 0.0
        hidden = max(256, round((parameters / 400) ** 0.5 / 256) * 256)  # N ≈ 12·h²·L with L ≈ h / 128 … 33 layers
        return ModelShape(parameters, max(1, round(parameters / (12 * hidden**2))), hidden, 150_000) if found else None
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = settings.get("text_config") or settings
    first = (
        next((int(text[name]) for name in names if text.get(name)), 1) for names in (LAYERS, HIDDEN, ("vocab_size",))
    )
    return ModelShape(size.parameters, *first)
