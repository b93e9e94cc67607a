"""One training as a value: what `mtkv.stages.train.train_arm` is given, and, as JSON, what the processes of a training on several are."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mtkv.config.arms import TrainingConfig
from mtkv.config.kv import KVConfig, LogitConfig
from mtkv.config.latent import LatentConfig
from mtkv.config.models import ModelConfig
from mtkv.distill.teacher_kv import TeacherFiles
from mtkv.training.checkpointing import SavedJob
from mtkv.training.world_layout import WorldLayout


class TrainingRun(BaseModel):
    """One arm with one seed: who is trained, how, on which rows, taught by whom, and where the results go.

    `teachers` are in the order of `kv.teachers`; `logit_teachers` in that of `logits.teachers`; `latent` is given in the student view of
    that name. Paths are read as they stand: relative ones from the working directory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    student: ModelConfig
    training: TrainingConfig
    seed: int
    train_rows: Path
    validation_rows: Path
    model_folder: Path
    log_path: Path
    routing_path: Path
    kv: KVConfig | None = None
    teachers: list[TeacherFiles] = []
    logits: LogitConfig | None = None
    logit_teachers: list[ModelConfig] = []
    latent: LatentConfig | None = None


class WorkerRequest(BaseModel):
    """A `TrainingRun` for the processes of `layout`: the first keeps the checkpoints of `job` and writes the card's facts to `result`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: TrainingRun
    job: SavedJob
    layout: WorldLayout
    result: Path
