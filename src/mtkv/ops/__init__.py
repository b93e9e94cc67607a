"""Everything around a study's run: what it will cost, whether it can run here, how far it is, and why jobs run again.

    snakemake_dag (dry run) → planned_jobs → rerun_reasons ─→ cost_model (seconds, bytes) ─→ plan    (`mtkv plan`)
    .snakemake/, checkpoints/, slurm.queue                                               ─→ status  (`mtkv status`)
    the machine, the hub, SLURM                                                          ─→ doctor  (`mtkv doctor`)

Nothing of a study is written.
"""
