from pathlib import Path

from mtkv.config.study import load_study
from mtkv.provenance.card import Card
from mtkv.stages.compare import compare

with Card.for_job(snakemake, "compare") as card:
    card.result = compare(
        load_study(snakemake.params.config),
        [Path(path) for path in snakemake.input.scores],
        [Path(path) for path in snakemake.input.cards],
        Path(snakemake.output.card).parent,
    )
