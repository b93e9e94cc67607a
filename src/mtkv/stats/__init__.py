"""Item scores in; intervals, paired differences, verdicts on the claims and a grade out. Never imports torch.

Words: *cell*, one arm on one dataset; *pair*, two arms on the same items; *macro*, the mean over the datasets; *family*, the
comparisons that Holm's adjustment counts together; *cluster*, items that are alike (a template, a passage).

    scores/*.json ─ items ─► Answers: per arm and dataset a matrix [seeds, items] of 0, 1
      ├ cells ─ intervals ─► accuracy with interval
      ├ pairs ─ paired_tests (bootstrap shared by all arms), power ─ multiplicity ─► better, worse, equivalent, undecided
      ├ ranks ─► matrix of wins and ties, tied set, rank intervals
      └ claims ─► supported, refuted or undecided ─► grade
    compute_parity refuses arms of unequal compute; translatable keeps sentences for the Chinese page

Example: 3 seeds × 200 questions on 7 datasets: 7 matrices [3, 200] for each arm; a resample draws 200 items of each with replacement,
the same ones for all arms; what few seeds and clusters add to the error is drawn from Student's t (`bootstrap`).
"""
