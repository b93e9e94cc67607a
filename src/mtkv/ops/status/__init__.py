"""`mtkv status`: `jobs` (all of a study) and `evidence` (files, checkpoints, Snakemake's notes, queue) → `states` → `look` → `screen`."""
