from pathlib import Path

from mtkv.kv.store import write_index
from mtkv.provenance.card import Card

with Card.for_job(snakemake, "teachers") as card:
    card.result = write_index([Path(path) for path in snakemake.input.shards], Path(snakemake.output.index))
