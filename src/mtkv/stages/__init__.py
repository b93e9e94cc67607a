"""The function behind each rule of the workflow: files in, files out, facts for the card returned.

A script in workflow/scripts calls it with the paths of the rule. What depends on the student's view, text or latent, is chosen here, in
`train` and `predict.evaluation_model`. The rules `data` (`mtkv.data.build`), `teacher_kv` (`mtkv.kv.extract`) and `score`
(`mtkv.evaluate.scoring`) have their function in the package that does the work.

    rows ─ kv.extract ─► store ─ fit_map ─► map, probe ─ project_targets (tier mapped) ─┐
    rows ──────────────────────────────────────────────────────────────────────────────┴ train ─► model, training log, routing
    the same ─ gate ─► cosines of the gradients before training (`mtkv gate`)
    model ─ predict (evaluation_model) ─► predictions ─ evaluate.scoring ─► scores ─ compare ─► tables ─ report ─► the page
    latent model ─ diagnose_latents ─► what its latents are worth
    train_worker: one process of a training on several
"""
