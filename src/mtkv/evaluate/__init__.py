"""From a model to item-level correctness, with lm-eval's tasks, filters and metrics.

Words: *task*, how a dataset is asked and scored (lm-eval's); *prediction*, what the model said to one question; *item score*, whether it
is right; *style*, the words around a question.

    test questions ─ lm_eval_tasks ─► StudyTask ─► requests ─ lm_eval_model ─┬ generation (greedy, answers leave the batch)  ┐
                                                    (batch_size, prefix_cache)└ loglikelihood (a question once per choices) ─┤
      journal keeps each answer ◄──────────────────────────────────────────────────────────────────────────────────────────────┤
      results/<study>/predictions/*.parquet ◄─ predictions ◄─ answer_rows ◄────────────────────────────────────────────────────┘
      predictions ─ scoring (answer_matching: a second look, without lm-eval's code) ─► scores/*.json

`mtkv.stages.predict` runs it; the cache of finished predictions is named by its `predictions_digest`.
"""
