"""What made a file, and whether it must be made again.

code that a stage imports → `code_digest` ─┐
settings                  → `digest`      ─┼→ Snakemake's params (rerun when they change) and the `card` beside each output
machine, time, versions   ─────────────────┘

`files` writes all of it atomically. *Card*: the JSON file that says what made an output, from what, where and at what cost.
"""
