from pathlib import Path

from mtkv.provenance.card import Card
from mtkv.stages.gate import measure_gate
from mtkv.stages.train import ArmInputs

wildcards = snakemake.wildcards
with Card.for_job(snakemake, "gate") as card:
    run = ArmInputs.for_job(snakemake, seed=snakemake.params.seed)
    card.result = measure_gate(run, int(wildcards.steps), int(wildcards.batches), Path(snakemake.output.table))
