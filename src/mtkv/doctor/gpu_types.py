"""How much memory one GPU has: of this machine as nvidia-smi says, of a cluster by the names of its types."""

import re

from mtkv.doctor.checks import Patient
from mtkv.doctor.gpus import gpus

# GB by the type's name in SLURM; those sold with two sizes count with the smaller one.
MEMORY = {
    "gh200": 96, "h200": 141, "b200": 180, "h100": 80, "a100": 40, "l40": 48, "a40": 48, "a30": 24, "a10": 24, "l4": 24,
    "v100": 16, "p100": 16, "t4": 16, "a6000": 48, "4090": 24, "3090": 24, "2080": 11,
}  # fmt: skip
SIZED = re.compile(r"(\d+)_?gb?\b", re.IGNORECASE)


def capacity(patient: Patient) -> tuple[float | None, str]:
    """GB of one GPU that jobs get, and its name; None where that is not known."""
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
    """GB of a GPU type by its name, a size in the name (a100_80gb) first; 0 for unknown ones."""
    sized = SIZED.search(name)
    return (
        float(sized[1]) if sized else next((float(size) for kind, size in MEMORY.items() if kind in name.lower()), 0.0)
    )
