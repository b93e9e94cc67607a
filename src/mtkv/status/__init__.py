"""How far a running study is: from its files, Snakemake's own notes and SLURM's queue, without Snakemake and without torch."""
