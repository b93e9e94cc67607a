from pathlib import Path

from mtkv.config.study import load_study
from mtkv.provenance.card import Card
from mtkv.stages.report import render

page = Path(snakemake.output.page)
with Card.for_job(snakemake, "report", folders=False) as card:
    card.result = render(load_study(snakemake.params.config), page.parents[1], page)
