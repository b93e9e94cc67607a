"""One optimiser run in one process or many, with checkpoints that resume to the same model; what is learnt is `mtkv.distill`'s.

Words: *part*, a forward pass of one process in a step; *share*, the rows of a batch that one process reads; *pooled*, measured over all
rows of a step; *term*, one addend of the loss (`part.*` with its weight).

    stages.train.TrainingRun ─ launcher ─► processes (world_layout, strategies) ─► trainer.DistillationTrainer
      data_parallel: who reads which rows, means over the whole step     │ gradient_shares, metrics ─► training.parquet
      step_statistics: spreads over the whole step                       └ checkpointing, resume ─► checkpoints/<digest>/, then model

Example: `batch_size` 8, two processes, `gradient_accumulation` 2: a step has 16 rows in 4 parts of 4. A part that holds 90 of the
step's 300 target tokens counts its mean CE with 90 / 75, so that the mean over the 4 parts is the mean over 300 tokens.
"""
