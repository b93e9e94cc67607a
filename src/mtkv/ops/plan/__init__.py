"""`mtkv plan`: which jobs would run, why, for how long, and what stands in the way. Runs and writes nothing.

    snakemake_dag.dry_run ─► jobs with reasons ─ cost_model.estimate ─► plan.Plan with problems ─ command ─► terminal, JSON
                                                └ explain: the way back from one file, or only times differ

Seconds are wall time of one job, bytes are on disk; a job that cannot be estimated is left out of sums and named.
"""
