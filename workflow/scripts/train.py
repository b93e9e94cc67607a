from mtkv.provenance.card import Card
from mtkv.stages.train import TrainingRun
from mtkv.stages.train_worker import train

with Card.for_job(snakemake, "arms") as card:
    run = TrainingRun.for_job(
        snakemake,
        seed=int(snakemake.wildcards.seed),
        model_folder=snakemake.output.model,
        log_path=snakemake.output.log,
        routing_path=snakemake.output.routing,
    )
    card.result = train(snakemake, run)
