from itertools import zip_longest
from pathlib import Path

from mtkv.config.models import ModelConfig
from mtkv.distill.teacher_kv import TeacherFiles, store_folder
from mtkv.provenance.card import Card
from mtkv.stages.train_worker import train
from mtkv.stages.train import TrainingRun

arm = snakemake.params.arm
models = [ModelConfig.model_validate(teacher["config"]) for teacher in arm["teachers"]]
stores = [store_folder(Path(path)) for path in snakemake.input.get("stores", [])]
maps = [Path(path) for path in snakemake.input.get("maps", [])]
with Card.for_job(snakemake, "arms") as card:
    run = TrainingRun(
        student=snakemake.params.student["config"],
        seed=int(snakemake.wildcards.seed),
        train_rows=snakemake.input.train,
        validation_rows=snakemake.input.val,
        teachers=[TeacherFiles(*files, arm["tier"]) for files in zip_longest(models, maps, stores)],
        model_folder=snakemake.output.model,
        log_path=snakemake.output.log,
        routing_path=snakemake.output.routing,
        **{name: arm.get(name) or None for name in ("training", "kv", "latent", "logits")},
        logit_teachers=[teacher["config"] for teacher in arm["logit_teachers"]],
    )
    card.result = train(snakemake, run)
