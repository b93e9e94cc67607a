"""One function per rule of the workflow: files and config sections in, files out, and the facts for the job's card as the result.

fit_map ── project_targets ── train ── predict ── (evaluate.scoring) ── compare ── report
                                └────── diagnose_latents
"""
