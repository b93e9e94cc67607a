from itertools import zip_longest
from pathlib import Path

from mtkv.config.models import ModelConfig
from mtkv.distill.teacher_kv import TeacherFiles, store_folder
from mtkv.provenance.card import Card
from mtkv.stages.gate import measure_gate
from mtkv.stages.train import ArmInputs

arm, wildcards = snakemake.params.arm, snakemake.wildcards
models = [ModelConfig.model_validate(teacher["config"]) for teacher in arm["teachers"]]
stores = [store_folder(Path(path)) for path in snakemake.input.get("stores", [])]
maps = [Path(path) for path in snakemake.input.get("maps", [])]
with Card.for_job(snakemake, "gate") as card:
    run = ArmInputs(
        student=snakemake.params.student["config"],
        seed=snakemake.params.seed,
        train_rows=snakemake.input.train,
        validation_rows=snakemake.input.val,
        teachers=[TeacherFiles(*files, arm["tier"]) for files in zip_longest(models, maps, stores)],
        **{name: arm.get(name) or None for name in ("training", "kv", "latent", "logits")},
        logit_teachers=[teacher["config"] for teacher in arm["logit_teachers"]],
    )
    card.result = measure_gate(run, int(wildcards.steps), int(wildcards.batches), Path(snakemake.output.table))
