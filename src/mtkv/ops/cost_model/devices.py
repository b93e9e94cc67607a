"""What a machine computes per second: makers' numbers for dense matrix products and for memory, and the share that a job really gets."""

from collections.abc import Mapping
from dataclasses import dataclass

from mtkv.ops.planned_jobs import PlannedJob

UTILISATION = 0.35  # share of the maker's FLOP/s in training and reading; well-run training has 0.3 to 0.5


@dataclass(frozen=True)
class Device:
    """FLOP/s in 16 and 32 bit, bytes/s from memory, and seconds that a decoding step takes at least, however small the model."""

    flops_16: float
    flops_32: float
    bandwidth: float
    step_seconds: float = 0.025

    def flops(self, dtype: str) -> float:
        """FLOP/s for a torch dtype, by name."""
        return self.flops_32 if dtype == "float32" else self.flops_16


DEVICES: Mapping[str, Device] = {
    "v100": Device(125e12, 15.7e12, 0.9e12),
    "t4": Device(65e12, 8.1e12, 0.32e12),
    "a100": Device(312e12, 19.5e12, 2.0e12),
    "h100": Device(989e12, 67e12, 3.35e12),
    "h200": Device(989e12, 67e12, 4.8e12),
    "l40s": Device(362e12, 91.6e12, 0.86e12),
    "rtx4090": Device(165e12, 82.6e12, 1.0e12),
    "cpu": Device(30e9, 30e9, 10e9, 0.003),  # one core
}
DEFAULT_GPU = "a100"


def device_name(job: PlannedJob, gpu: str = DEFAULT_GPU) -> str:
    """The key in `DEVICES` to estimate a job with: the GPU model it asks for, if known; `gpu` for other GPU jobs; else "cpu"."""
    if not job.gpus:
        return "cpu"
    asked = str(job.resources.get("gpu_model") or job.resources.get("gres") or "").lower()
    return next((name for name in DEVICES if name in asked), gpu)


def devices_used(job: PlannedJob) -> int:
    """How many of its device a job uses: its GPUs, else its threads."""
    return max(1, job.gpus or job.threads)
