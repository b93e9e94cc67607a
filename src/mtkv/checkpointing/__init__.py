"""Let a stage that was killed go on where it stopped, and let nobody else write there meanwhile.

stage → `store.Checkpoint.save(step)` → checkpoints/<digest of `identity`>/step-*  → the next attempt goes on from the newest complete step
          guarded by `lock`; USR1 before SLURM's time limit → `preemption`; earlier logs → `log_history`; no longer needed → `clean`

*Step*: one saved state, complete or absent. *Identity*: what must be equal to resume: settings, code, inputs, versions.
"""
