"""Seconds and bytes of a job before it runs: measured if it has run, scaled from a like one, else by a stated model.

    params of a job, amounts of the study ─┐
    model_sizes (parameters, KV width) ────┴ work ─► FLOPs, bytes ─┐
    cards of past runs ─ past_runs ─► samples ─────────────────────┴ estimate ─► CostEstimate of each job
    all estimates ─ estimate.critical_path, makespan ─► longest chain, and the whole on a number of slots

FLOPs are whole counts, seconds wall time, memory and disk bytes.
"""
