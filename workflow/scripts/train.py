from itertools import zip_longest
from pathlib import Path

from mtkv.config.arms import TrainingConfig
from mtkv.config.kv import KVConfig, LogitConfig
from mtkv.config.models import ModelConfig
from mtkv.distill.train import TeacherFiles, train_arm, store_folder
from mtkv.provenance.card import Card

arm = snakemake.params.arm
models = [ModelConfig.model_validate(teacher["config"]) for teacher in arm["teachers"]]
stores = [store_folder(Path(path)) for path in snakemake.input.get("stores", [])]
maps = [Path(path) for path in snakemake.input.get("maps", [])]
with Card.for_job(snakemake, "arms") as card:
    card.result = train_arm(
        ModelConfig.model_validate(snakemake.params.student["config"]),
        TrainingConfig.model_validate(arm["training"]),
        KVConfig.model_validate(arm["kv"]) if arm["kv"] else None,
        int(snakemake.wildcards.seed),
        Path(snakemake.input.train),
        Path(snakemake.input.val),
        [TeacherFiles(*files, arm["tier"]) for files in zip_longest(models, maps, stores)],
        model_folder=Path(snakemake.output.model),
        log_path=Path(snakemake.output.log),
        routing_path=Path(snakemake.output.routing),
        logits=arm["logits"] and LogitConfig.model_validate(arm["logits"]),
        logit_teacher=arm["logits"] and ModelConfig.model_validate(arm["logit_teacher"]["config"]),
    )
