from pathlib import Path

from mtkv.config.data import DataConfig
from mtkv.data.build import build_data
from mtkv.provenance.card import Card

with Card.for_job(snakemake, "data") as card:
    card.result = build_data(
        DataConfig.model_validate(snakemake.params.config),
        snakemake.params.datasets,
        Path(snakemake.output.card).parent,
    )
