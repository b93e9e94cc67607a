"""study_diff."""
