"""SLURM as seen from outside: `partitions` (limits, from file or scontrol) for plans, `queue` (squeue) for the status."""
