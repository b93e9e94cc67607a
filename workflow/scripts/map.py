from pathlib import Path

from mtkv.stages.fit_map import MapFiles, calibrate_map
from mtkv.config.kv import AlignConfig
from mtkv.config.models import ModelConfig
from mtkv.provenance.card import Card

with Card.for_job(snakemake, "maps") as card:
    card.result = calibrate_map(
        ModelConfig.model_validate(snakemake.params.student["config"]),
        snakemake.wildcards.teacher,
        ModelConfig.model_validate(snakemake.params.teacher["config"]),
        AlignConfig.model_validate(snakemake.params.align),
        Path(snakemake.input.index[0]).parent if snakemake.input.get("index") else None,
        Path(snakemake.input.rows[1]).parent,
        MapFiles(*(Path(snakemake.output[name]) for name in ("map", "probe", "example"))),
    )
