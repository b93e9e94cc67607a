"""Claims of a study, tested: `kinds` (one function per kind) → `evidence` (estimate, interval, p) → `verdicts` (Holm, words, grade)."""
