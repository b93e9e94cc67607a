from pathlib import Path

from mtkv.stages.fit_map import gather_probes
from mtkv.provenance.card import Card

with Card.for_job(snakemake, "maps") as card:
    tables = [Path(path) for path in snakemake.input.tables]
    card.result = gather_probes(tables, Path(snakemake.output.table))
