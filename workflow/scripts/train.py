from itertools import zip_longest
from pathlib import Path

from mtkv.config.arms import TrainingConfig
from mtkv.config.kv import KVConfig, LogitConfig
from mtkv.config.latent import LatentConfig
from mtkv.config.models import ModelConfig
from mtkv.stages.train_worker import train
from mtkv.distill.teacher_kv import TeacherFiles, store_folder
from mtkv.provenance.card import Card

SECTIONS = {"training": TrainingConfig, "kv": KVConfig, "latent": LatentConfig, "logits": LogitConfig}
arm = snakemake.params.arm
models = [ModelConfig.model_validate(teacher["config"]) for teacher in arm["teachers"]]
stores = [store_folder(Path(path)) for path in snakemake.input.get("stores", [])]
maps = [Path(path) for path in snakemake.input.get("maps", [])]
with Card.for_job(snakemake, "arms") as card:
    card.result = train(
        snakemake,
        student=ModelConfig.model_validate(snakemake.params.student["config"]),
        seed=int(snakemake.wildcards.seed),
        train_rows=Path(snakemake.input.train),
        validation_rows=Path(snakemake.input.val),
        teachers=[TeacherFiles(*files, arm["tier"]) for files in zip_longest(models, maps, stores)],
        model_folder=Path(snakemake.output.model),
        log_path=Path(snakemake.output.log),
        routing_path=Path(snakemake.output.routing),
        **{name: arm.get(name) and section.model_validate(arm[name]) for name, section in SECTIONS.items()},
        logit_teacher=arm["logits"] and ModelConfig.model_validate(arm["logit_teacher"]["config"]),
    )
