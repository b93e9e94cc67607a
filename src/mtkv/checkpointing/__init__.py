"""Work that is not lost when a job is: where a stage keeps what it has, and who may write it.

Words: *identity*, settings, code, inputs and versions, all of which must agree to go on; *manifest*, identity and whose run it is;
*step*, one saved state; *preemption*, SLURM's USR1 before the time limit.

    job ─ identity ─► digest ─ store.Checkpoint: checkpoints/<digest>/ (lock.WriterLock: one writer)
      save ─► step-00000123/, whole or not there │ preemption: save, leave with a code of its own
      next start: newest step ─► the same result │ carry_on: the job's old log goes on │ clean: folders of no more use
"""
