"""What differs between two finished studies, for `mtkv diff`.

results/a, results/b → facts (config, data, versions, code) ─┐
                     → questions (same name, same question?) → scores (paired) ─→ diff (StudyDiff) → tables (terminal, JSON)
"""
