"""The section `resources`: what a job of each heavy stage asks of the scheduler. It never influences a result."""

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from mtkv.config.base import Section, problem


class StageResources(Section):
    """What one job of a stage asks for."""

    mem_mb: int = Field(default=2000, ge=1, description="Memory in MB.")
    runtime: int = Field(default=30, ge=1, description="Time limit in minutes.")
    threads: int = Field(default=1, ge=1, description="CPU cores.")
    gpu: int = Field(default=0, ge=0, description="GPUs.")


Strategy = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]


class TrainResources(StageResources):
    """What one training run asks for, and over which processes it is spread."""

    gpu: int = Field(
        default=0, ge=0, description="GPUs of one run, over all its nodes; more than one needs a strategy."
    )
    nodes: int = Field(default=1, ge=1, description="Machines of one run, with as many GPUs each.")
    processes: int | None = Field(
        default=None, ge=1, description="Processes of one run, over all its nodes; null: one for each GPU."
    )
    strategy: Strategy = Field(
        default="single",
        description="How a run uses its GPUs, one process each. single: one process; ddp: a whole model in every process;"
        " fsdp2: parameters, gradients and optimiser state split over them; zero2 and zero3: the same by DeepSpeed.",
    )

    checkpoint_minutes: float = Field(
        default=10, gt=0, description="Wall time between two checkpoints of a training that may be cut off."
    )
    report_to: Literal["none", "tensorboard", "trackio"] = Field(
        default="none",
        description="Board that the training log also goes to while it is written, in results/<study>/logs/arms/; needs that package.",
    )
    stream: bool = Field(
        default=False,
        description="Keep tokenised rows and their matches in a file in the folder for temporary files (TMPDIR, on a disk) instead of in"
        " memory, for data that does not fit; the results are the same. Not for student_view latent and teachers.mode online.",
    )

    @property
    def workers(self) -> int:
        """Number of processes of one training run."""
        return self.processes or max(1, self.gpu, self.nodes)

    @model_validator(mode="after")
    def _spread_fits(self) -> Self:
        if self.strategy == "single" and self.workers > 1:
            raise problem(
                f"'single' is one process, but gpu {self.gpu}, nodes {self.nodes} and processes {self.processes} ask for"
                f" {self.workers}; allowed: {', '.join(get_args(Strategy)[1:])}",
                "strategy",
            )
        if self.gpu and self.processes and self.processes > self.gpu:
            raise problem(
                f"{self.processes}, but there are {self.gpu} GPUs; one process needs one, or null", "processes"
            )
        for name, value in (("gpu", self.gpu), ("processes", self.processes or 0)):
            if value % self.nodes:
                raise problem(f"{value} cannot be the same on each of {self.nodes} nodes; a multiple of nodes", name)
        return self


class TeacherResources(StageResources):
    """What one shard of a teacher asks for, and where the teacher lies."""

    placement: Literal["single", "device_map"] = Field(
        default="single",
        description="single: on one GPU. device_map: layer by layer over the job's GPUs and then its host memory, for a teacher that one"
        " GPU cannot hold.",
    )

    @model_validator(mode="after")
    def _gpus_are_used(self) -> Self:
        if self.placement == "single" and self.gpu > 1:
            raise problem(f"'single' uses one GPU of {self.gpu}; allowed: gpu 1, or device_map", "placement")
        return self


class Resources(Section):
    """Resources by stage."""

    data: StageResources = Field(default=StageResources(), description="Making the rows.")
    teachers: TeacherResources = Field(default=TeacherResources(), description="One shard of one teacher's KV.")
    maps: StageResources = Field(default=StageResources(), description="Fitting one teacher's map.")
    train: TrainResources = Field(default=TrainResources(), description="Training one run.")
    predict: StageResources = Field(default=StageResources(), description="Answering with one run.")
