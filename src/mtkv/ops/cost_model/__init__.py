"""Seconds and bytes of a job before it runs: measured if it has run, scaled from a like one, else by a stated model.

    params of a job ─ amounts (rows, tokens, questions) ─┐
                      model_sizes (parameters, KV width) ┴ work ─► FLOPs, bytes ─ devices ─► seconds ┐
    cards of past runs ─ past_runs ─► samples ───────────────────────────────────────────────────────┴ estimate ─► CostEstimate
    all estimates ─ schedule ─► longest chain, and the whole on a number of slots

FLOPs are whole counts, seconds wall time, memory and disk bytes.
"""
