"""`mtkv status`: how far a study is, from files and SLURM's queue alone; it works beside a running study and on another node.

    config ─ jobs ─► jobs with their files ─┐
    evidence (manifests, locks, progress) ──┼─ states ─► done, running, queued, failed, stopped or waiting ─ look ─► screen, JSON
    snakemake_log, slurm.queue ─────────────┘                                     └ remaining_time: what is left

Nothing is written, and nothing loads torch.
"""
