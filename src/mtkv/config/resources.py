"""The section `resources`: what a job of each heavy stage asks of the scheduler. It never influences a result."""

from pydantic import Field

from mtkv.config.base import Section


class StageResources(Section):
    """What one job of a stage asks for."""

    mem_mb: int = Field(default=2000, ge=1, description="Memory in MB.")
    runtime: int = Field(default=30, ge=1, description="Time limit in minutes.")
    threads: int = Field(default=1, ge=1, description="CPU cores.")
    gpu: int = Field(default=0, ge=0, description="GPUs.")


class Resources(Section):
    """Resources by stage."""

    data: StageResources = Field(default=StageResources(), description="Making the rows.")
    teachers: StageResources = Field(default=StageResources(), description="One shard of one teacher's KV.")
    maps: StageResources = Field(default=StageResources(), description="Fitting one teacher's map.")
    train: StageResources = Field(default=StageResources(), description="Training one run.")
    predict: StageResources = Field(default=StageResources(), description="Answering with one run.")
