from pathlib import Path

from mtkv.config.arms import TrainingConfig
from mtkv.config.kv import KVConfig
from mtkv.config.models import ModelConfig
from mtkv.distill.train import train_arm
from mtkv.provenance.card import Card

arm = snakemake.params.arm
with Card.for_job(snakemake, "arms") as card:
    card.result = train_arm(
        ModelConfig.model_validate(snakemake.params.student["config"]),
        TrainingConfig.model_validate(arm["training"]),
        KVConfig.model_validate(arm["kv"]) if arm["kv"] else None,
        int(snakemake.wildcards.seed),
        Path(snakemake.input.train),
        Path(snakemake.input.val),
        stores=[Path(index).parent for index in snakemake.input.get("stores", [])],
        maps=[Path(path) for path in snakemake.input.get("maps", [])],
        model_folder=Path(snakemake.output.model),
        log_path=Path(snakemake.output.log),
        routing_path=Path(snakemake.output.routing),
    )
