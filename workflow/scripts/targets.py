from pathlib import Path

from mtkv.stages.project_targets import Storing, write_targets
from mtkv.config.models import ModelConfig
from mtkv.provenance.card import Card

with Card.for_job(snakemake, "maps") as card:
    card.result = write_targets(
        ModelConfig.model_validate(snakemake.params.student["config"]),
        Path(snakemake.input.index).parent,
        Path(snakemake.input.map),
        snakemake.params.time,
        [Path(path) for path in snakemake.input.rows],
        Storing(*snakemake.params.storing),
        Path(snakemake.output.targets),
    )
