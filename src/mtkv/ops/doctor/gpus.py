"""GPUs, the driver, the CUDA that torch was built for, and how much memory one GPU has; all asked without loading torch.

This machine's GPUs are those of nvidia-smi; a cluster's are known by the names of their types.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mtkv.ops.doctor.checks import DoctorContext, Finding, check
from mtkv.ops.slurm.queue import ask

# GB by the type's name in SLURM; of types sold in two sizes the smaller one.
MEMORY = {
    "gh200": 96, "h200": 141, "b200": 180, "h100": 80, "a100": 40, "l40": 48, "a40": 48, "a30": 24, "a10": 24, "l4": 24,
    "v100": 16, "p100": 16, "t4": 16, "a6000": 48, "4090": 24, "3090": 24, "2080": 11,
}  # fmt: skip
SIZED = re.compile(r"(\d+)_?gb?\b", re.IGNORECASE)


def capacity(patient: DoctorContext) -> tuple[float | None, str]:
    """(GB, name) of the smallest GPU that jobs may get; (None, "") where that is not known."""
    if not patient.profile.remote:
        here = gpus()
        smallest = min(here, key=lambda gpu: gpu.total, default=None) if here else None
        return (smallest.total * 1.048576 / 1000, smallest.name) if smallest else (None, "")
    site = patient.site
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
    sized = SIZED.search(name)
    return (
        float(sized[1]) if sized else next((float(size) for kind, size in MEMORY.items() if kind in name.lower()), 0.0)
    )


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


@check("cuda")
def cuda(patient: DoctorContext) -> Iterator[Finding]:
    """The driver must know the CUDA that torch was built for (same major version, or a newer one)."""
    found, driver, built = gpus(), driver_cuda(), torch_cuda()
    if found is None:
        yield from _no_driver(patient)
        return
    if not found:
        yield Finding(
            "error", "nvidia-smi finds no GPU that answers", "run nvidia-smi; reload the driver or restart the machine"
        )
        return
    kinds = ", ".join(sorted({gpu.name for gpu in found}))
    if built is None:
        fix = "install torch's build for CUDA: pip install -r requirements.lock without a CPU index"
        yield Finding("error", f"{len(found)} GPU ({kinds}), but this torch is built for the CPU only", fix)
    elif driver and int(float(built)) > int(driver):
        fix = f"update the NVIDIA driver, or install a torch built for CUDA {driver:g}"
        yield Finding(
            "error", f"torch is built for CUDA {built}, driver {found[0].driver} knows CUDA {driver:g} at most", fix
        )
    else:
        yield Finding("ok", f"{len(found)} GPU ({kinds}), driver {found[0].driver}, torch for CUDA {built}")
    if asks_bfloat16(patient) and min(gpu.capability for gpu in found) < AMPERE:
        yield Finding(
            "warning",
            f"{kinds}: bfloat16 is emulated and slow",
            "set dtype: float32 for the student and its training, float16 or float32 for teachers",
        )
    asked = max(getattr(patient.study.resources, stage).gpu for stage in STAGES)
    if not patient.profile.remote and asked > len(found):
        yield Finding(
            "error",
            f"a job asks for {asked} GPUs, here are {len(found)}",
            "lower resources.<stage>.gpu, or use a cluster's profile",
        )


def _no_driver(patient: DoctorContext) -> Iterator[Finding]:
    asking = [stage for stage in STAGES if getattr(patient.study.resources, stage).gpu]
    if not asking:
        yield Finding("ok", "no GPU here, and the study asks for none")
    elif patient.profile.remote:
        yield Finding("ok", f"no GPU on this machine; {', '.join(asking)} run on the cluster's nodes")
    else:
        message = f"no GPU here (no nvidia-smi), but {', '.join(asking)} ask for one: they would run on the CPU, large models for weeks"
        yield Finding(
            "warning",
            message,
            "run on a cluster (--profile profiles/slurm) or on a machine with a GPU; or choose smaller models",
        )


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
    found = (
        re.search(r"^cuda\b[^=]*= *'([\d.]+)'", path.read_text(encoding="utf-8"), re.MULTILINE)
        if path and path.is_file()
        else None
    )
    return found[1] if found else None


def asks_bfloat16(patient: DoctorContext) -> bool:
    """Whether any model or training of the study is in bfloat16."""
    study = patient.study
    trainings = [arm.training.dtype for arm in study.arms.values() if arm.training]
    return "bfloat16" in [study.student.dtype, *(model.dtype for model in study.teachers.models.values()), *trainings]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # nvidia-smi's [N/A]
        return 0.0
