"""What one does around a study: see what it will cost, whether it can run here, and how far it is.

Nothing here computes a result or writes into one. *Job*: one run of a rule; *reason*: why Snakemake would run it again.

    plan    snakemake_dag (dry run) ─► planned_jobs + rerun_reasons ─► cost_model ─► tables
    doctor  study, profile, this machine ─► checks ─► findings, each with what to do
    gate    Snakemake ─► results/<study>/gate/ ─► table
    status  files, checkpoints, Snakemake's logs, slurm.queue ─► state of each job ─► screen
    warm_workers  Snakemake's onstart ─► a server that jobs are forked from
"""
