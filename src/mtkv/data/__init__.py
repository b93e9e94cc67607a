"""From the questions of data sets to rows of text, with a check that no test question is trained on.

synthetic tasks (`pocket_*`) ─┐
real `sources`, by `loading`  ┴→ `items.Item` → `splits`/`mixture` (by hash of the question) → `rows` → {train,val,calibration}.parquet
seven `benchmarks`            → `testsets` → test/<dataset>.parquet;      `contamination` compares rows with tests, `validation` checks all

*Item*: one question with its answer. *Row*: a question written in one *style*, as prompt and target. *Pocket*: small and made here.
"""
