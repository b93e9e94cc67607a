"""Questions to rows of text and test sets, with no question on both sides.

Words: *source*, a data set rows are made from; *benchmark*, a data set that is asked; *item*, one question with its chain of thought
and answer; *row*, an item in one style (`cot`, `direct`) as prompt and target; *split*, train, val, calibration or test.

    pocket tasks (programs) ─────────────────┐
    files or hub ─ loading, sources ─► items ─┴ mixture, splits ─► train, val, calibration.parquet
    files or hub ─ loading, benchmarks ─► testsets ─► test/*.parquet, examples/*.parquet (few-shot)
    build runs it, and fetches the files; rows.check_rows and splits.split_facts check and count; rows.RowFile reads rows larger than memory
"""
