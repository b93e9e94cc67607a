"""From a model to item-level correctness: lm-eval tasks, predictions (one row per question) and scores.

questions ── lm_eval_tasks ──┐
model ── lm_eval_model (generation, loglikelihood, prefix_cache, batch_size, journal) ── answer_matching ── predictions ── scoring
"""
