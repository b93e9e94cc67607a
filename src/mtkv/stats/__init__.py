"""Item scores in; intervals, paired differences, verdicts on the claims and a grade out."""
