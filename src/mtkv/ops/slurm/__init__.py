"""What SLURM says of itself: the partitions and their limits (`partitions`), and the user's jobs (`queue`).

    scontrol, or the user's partition file ─ partitions ─► ClusterPartition, for plan and doctor
    squeue ─ queue ─► QueuedJob, for status; None where SLURM did not answer, which is not an empty queue

Neither submits anything.
"""
