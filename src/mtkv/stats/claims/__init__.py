"""Whether the data support each claim that the study wrote down before its runs.

Words: *kind*, the shape of a claim (`difference`, `reaches` …); *evidence*, estimate, interval and p before any adjustment; *verdict*,
supported, refuted or undecided; *level*, minimum, ideal or stretch; *grade*, the highest level whose claims are all supported.

    Answers, Resamples ─ kinds.KINDS[claim.kind] ─► Evidence ─ verdicts: Holm over all claims, then judge ─► claims.parquet, grade

Thresholds and differences are percentage points.
"""
