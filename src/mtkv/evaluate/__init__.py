"""From a model to item-level correctness: lm-eval tasks, predictions (one row per question) and scores."""
