"""Injection: a student reads what teachers say of a question in its own cache (Cache-to-Cache, arXiv 2510.03215; docs/method.md §14).

The student reads a prompt but for its last token; at each token that ends where a token of every teacher ends, a fuser turns the
teachers' KV and the student's own into corrections of the cached K and V of every layer; last token and answer go on from that cache.

    fuser           heads, router, and the files `fuser.safetensors` and `fuser.json` beside the student's
    patched_cache   the two passes, the same ones in training and when questions are asked
    rows            rows whose teachers speak at the prompt alone, in training and when questions are asked
    training        the module that is trained by the answers' cross-entropy
    lm_eval_model   student, fuser and teachers behind lm-eval's interface

Example, 30 tokens of prompt, 26 of them synchronised, two teachers: own KV `[26, 5, 2, 32]`, teachers' `[26, 5, 2, 64]` each, weights
`[1, 2]`, correction `[26, 5, 2, 32]`, added to columns of a cache of 29; a fuser that is not trained adds exactly 0.
"""
