"""GPUs, the driver, the CUDA that torch was built for, and GPU memory against the study's models; all asked without loading torch.

This machine's GPUs are those of nvidia-smi; a cluster's are known by the names of their types. What a job needs is by a stated formula:
N parameters of b bytes, B rows of T tokens, L layers of width h, V words.

training     16·N (weights, gradients, AdamW's two moments, all float32 whatever format they are saved in), with adapters b·N; over n GPUs
             divided by n (fsdp2, zero3) or all but the weights (zero2); in bfloat16 2·N on each GPU where the weights are float32 (the
             copies of autocast); and activations 34·B·T·h·L (Korthikanti et al., 2022, arXiv 2205.05198, eq. 2 without attention
             scores; with checkpointing 2·B·T·h·L + 34·B·T·h), and 8·B·T·V of logits. Online teachers add their b·N.
teacher, predictions   b·N and 1 GB; the batch is fitted to the rest by the stages themselves.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mtkv.ops.cost_model.model_sizes import ModelSize, model_size
from mtkv.ops.cost_model.work import BYTES
from mtkv.ops.doctor.checks import DoctorContext, Finding, error, note, ok, warning
from mtkv.ops.slurm.queue import ask

if TYPE_CHECKING:
    from mtkv.config.arms import Arm
    from mtkv.config.models import ModelConfig
    from mtkv.config.resources import TrainResources


# GB by the type's name in SLURM; of types sold in two sizes the smaller one.
MEMORY = {
    "gh200": 96, "h200": 141, "b200": 180, "h100": 80, "a100": 40, "l40": 48, "a40": 48, "a30": 24, "a10": 24, "l4": 24,
    "v100": 16, "p100": 16, "t4": 16, "a6000": 48, "4090": 24, "3090": 24, "2080": 11,
}  # fmt: skip
SIZED = re.compile(r"(\d+)_?gb?\b", re.IGNORECASE)


def capacity(context: DoctorContext) -> tuple[float | None, str]:
    """(GB, name) of the smallest GPU that jobs may get; (None, "") where that is not known."""
    if not context.profile.remote:
        here = gpus()
        smallest = min(here, key=lambda gpu: gpu.total, default=None) if here else None
        return (smallest.total * 1.048576 / 1000, smallest.name) if smallest else (None, "")
    site = context.site
    models = [model for part in site.partitions.values() for model in part.available_gpu_models or []]
    named = [site.gpu_model] if site.gpu_model else models
    sizes = {name: memory_of(f"{name} {site.constraint or ''}") for name in named}
    known = {name: size for name, size in sizes.items() if size}
    if not known:
        return None, ""
    name = min(known, key=lambda key: known[key])
    return known[name], name


def memory_of(name: str) -> float:
    """GB of a GPU type by its name: a size in the name (a100_80gb), else from `MEMORY`; 0 for unknown types."""
    if sized := SIZED.search(name):
        return float(sized[1])
    return next((float(size) for kind, size in MEMORY.items() if kind in name.lower()), 0.0)


STAGES = ("teachers", "maps", "train", "predict")
QUERY = "name,memory.total,memory.free,driver_version,compute_cap"
AMPERE = 8.0  # compute capability from which a GPU computes in bfloat16


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi reports it; memory in MiB."""

    name: str
    total: float
    free: float
    driver: str
    capability: float


def cuda(context: DoctorContext) -> Iterator[Finding]:
    """The driver must know the CUDA that torch was built for (same major version, or a newer one)."""
    found, driver, built = gpus(), driver_cuda(), torch_cuda()
    if found is None:
        yield from _no_driver(context)
        return
    if not found:
        yield error("nvidia-smi finds no GPU that answers", "run nvidia-smi; reload the driver or restart the machine")
        return
    kinds = ", ".join(sorted({gpu.name for gpu in found}))
    if built is None:
        fix = "install torch's build for CUDA: rm -r .venv; make TORCH=auto study"
        yield error(f"{len(found)} GPU ({kinds}), but this torch is built for the CPU only", fix)
    elif driver and int(float(built)) > int(driver):
        fix = f"update the NVIDIA driver, or install a torch built for CUDA {driver:g}"
        yield error(f"torch is built for CUDA {built}, driver {found[0].driver} knows CUDA {driver:g} at most", fix)
    else:
        yield ok(f"{len(found)} GPU ({kinds}), driver {found[0].driver}, torch for CUDA {built}")
    if asks_bfloat16(context) and min(gpu.capability for gpu in found) < AMPERE:
        fix = "set dtype: float32 for the student and its training, float16 or float32 for teachers"
        yield warning(f"{kinds}: bfloat16 is emulated and slow", fix)
    asked = max(getattr(context.study.resources, stage).gpu for stage in STAGES)
    if not context.profile.remote and asked > len(found):
        fix = "lower resources.<stage>.gpu, or use a cluster's profile"
        yield error(f"a job asks for {asked} GPUs, here are {len(found)}", fix)


def _no_driver(context: DoctorContext) -> Iterator[Finding]:
    asking = [stage for stage in STAGES if getattr(context.study.resources, stage).gpu]
    if not asking:
        yield ok("no GPU here, and the study asks for none")
    elif context.profile.remote:
        yield ok(f"no GPU on this machine; {', '.join(asking)} run on the cluster's nodes")
    else:
        message = f"no GPU here (no nvidia-smi), but {', '.join(asking)} ask for one: they would run on the CPU, large models for weeks"
        fix = "run on a cluster (--profile profiles/slurm) or on a machine with a GPU; or choose smaller models"
        yield warning(message, fix)


def gpus() -> list[Gpu] | None:
    """The GPUs of this machine; None without nvidia-smi, empty when it fails."""
    answer = ask("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits", timeout=10)
    if answer is None:
        return None
    rows = [[field.strip() for field in line.split(",")] for line in answer.text.splitlines()] if answer.good else []
    return [Gpu(row[0], _number(row[1]), _number(row[2]), row[3], _number(row[4])) for row in rows if len(row) == 5]


def driver_cuda() -> float | None:
    """The newest CUDA that the driver supports, from the heading of nvidia-smi."""
    answer = ask("nvidia-smi", timeout=10)
    found = re.search(r"CUDA (?:UMD )?Version: *(\d+\.\d+)", answer.text) if answer else None
    return float(found[1]) if found else None


def torch_cuda() -> str | None:
    """The CUDA that torch was built for, read from its version file; None for CPU builds."""
    spec = find_spec("torch")
    path = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    text = path.read_text(encoding="utf-8") if path and path.is_file() else ""
    found = re.search(r"^cuda\b[^=]*= *'([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else None


def asks_bfloat16(context: DoctorContext) -> bool:
    """Whether any model or training of the study is in bfloat16."""
    study = context.study
    trainings = [arm.training.dtype for arm in study.arms.values() if arm.training]
    return "bfloat16" in [study.student.dtype, *(model.dtype for model in study.teachers.models.values()), *trainings]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # nvidia-smi's [N/A]
        return 0.0


LESS_TRAINING = (
    "smaller training.batch_size, gradient_checkpointing: true, lora, resources.train.strategy: fsdp2 with more GPUs"
)
LESS_READING = "a GPU with more memory, or a 16-bit dtype"
NAMED = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bm])(?![A-Za-z0-9])", re.IGNORECASE)


def gpu_memory(context: DoctorContext) -> Iterator[Finding]:
    """The memory each GPU job needs against that of one GPU."""
    room, where = capacity(context)
    for name, config, needed in demands(context):
        if needed is None:
            fix = "snakemake assets, then look again"
            yield note(f"{name}: size of {config.name} unknown until it is fetched", fix)
            continue
        about = f"{name}: about {needed:.1f} GB"
        if room is None:
            yield note(f"{about} of GPU memory")
        elif needed > room:
            yield error(
                f"{about}, {where} has {room:.0f} GB", LESS_TRAINING if name.startswith("train") else LESS_READING
            )
        elif needed > 0.85 * room:
            yield warning(f"{about} of the {room:.0f} GB of {where}", "a smaller batch_size is safer")
        else:
            yield ok(f"{about} of the {room:.0f} GB of {where}")


def demands(context: DoctorContext) -> Iterator[tuple[str, "ModelConfig", float | None]]:
    """(job, its model, GB on one GPU) of each kind of GPU job; None for a model of unknown size."""
    study, resources = context.study, context.study.resources
    if resources.teachers.gpu and study.teachers.mode == "stored":
        for teacher in study.teachers_used():
            config = study.teachers.models[teacher]
            yield f"teacher {teacher}", config, reading_gb(config, resources.teachers.gpu)
    if resources.train.gpu:
        for name, needed in largest_training(context):
            yield f"train {name}", study.student, needed
    if resources.predict.gpu:
        for name in dict.fromkeys(arm.model for arm in study.arms.values()):
            config = study.student if name == "student" else study.teachers.models[name]
            yield f"predict {name}", config, reading_gb(config, 1)


def largest_training(context: DoctorContext) -> Iterator[tuple[str, float | None]]:
    """The trained arm that takes most memory and its GB (None where no size is known): if it fits, all do. Nothing without training."""
    study = context.study
    found = {
        name: training_gb(study.student, arm, study.resources.train, along(context, arm))
        for name, arm in study.arms.items()
        if arm.training
    }
    known = {name: needed for name, needed in found.items() if needed is not None}
    if known:
        yield max(known.items(), key=lambda entry: entry[1])
    elif found:
        yield next(iter(found)), None


def along(context: DoctorContext, arm: "Arm") -> list["ModelConfig"]:
    """The online teachers of an arm, which stay in memory while it trains."""
    teachers = context.study.teachers
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
    shards = {"fsdp2": (processes, processes), "zero3": (processes, processes), "zero2": (1, processes)}
    shared = shards.get(asked.strategy, (1, 1))
    tokens = max(1, training.batch_size // processes) * training.max_length
    layers = 2 * shape.layers + 34 if training.gradient_checkpointing else 34 * shape.layers
    wide = 2 if training.dtype == "float32" else 1  # the formula counts 16-bit activations
    copies = 2 * shape.parameters if training.dtype == "bfloat16" and size == BYTES["float32"] else 0
    activations = wide * tokens * shape.hidden * layers + 8 * tokens * shape.vocabulary
    readers = sum(found.parameters * BYTES[teacher.dtype] for teacher in teachers if (found := shape_of(teacher)))
    return float(weights / shared[0] + rest / shared[1] + copies + activations + readers) / 1e9


def shape_of(config: "ModelConfig") -> ModelSize | None:
    """Size and widths of a model that is here; else those that its name suggests (`-7B-`), or None."""
    found = NAMED.search(config.name.rpartition("/")[2])
    if (size := model_size(config)) or not found:
        return size
    parameters = round(float(found[1]) * (1e9 if found[2] in "bB" else 1e6))
    hidden = max(256, round((parameters / 400) ** 0.5 / 256) * 256)  # N ≈ 12·h²·L with L ≈ h / 128 … 33 layers
    layers = max(1, round(parameters / (12 * hidden**2)))
    return ModelSize(parameters, layers, kv_heads=0, kv_width=0, hidden=hidden, vocabulary=150_000)
