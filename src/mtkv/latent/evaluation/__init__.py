"""Ask a latent student questions, and find out whether its answers depend on its latents.

    latent model ─ lm_eval_model.LatentEvaluationModel ─► lm-eval's requests (every context is followed by its latents) ─► answers
      interventions: latents as they are, zeroed, of another question, cut to the first half or to none
      decoded: likeliest tokens of each latent through the lm head
      selected_positions: where in the chain each latent's KV came from

`mtkv.stages.diagnose_latents` writes the tables.
"""
