"""`mtkv diff a b`: what two finished studies differ in: config, data, versions, code, verdicts and scores.

    results/a, results/b ─ diff ─► flat name → value pairs, compared
                         ─ scores ─► which items are the same question, paired statistics of `mtkv.stats` ─► rows
    diff.StudyDiff ─ tables ─► terminal, JSON (docs/report.md)

Nothing is written but the JSON that is asked for, and nothing loads torch.
"""
