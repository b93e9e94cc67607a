"""The statistics of a study: from right and wrong answers to intervals, differences, ranks and verdicts.

An *item* is a question, a *run* an arm with one seed, a *column* a dataset or "macro" (the mean over the datasets), a *cluster* items
that resemble each other (a passage, a template). Shares lie in 0..1 everywhere; only `claims` speaks of percentage points.

    scores/*.json → items (Answers) → bootstrap → intervals ─┬→ cells   (accuracy of each arm)
                                                             ├→ paired_tests → pairs, ranks
                                                             └→ claims  (supported, refuted, undecided; the grade)
"""
