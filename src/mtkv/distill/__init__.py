"""What one arm learns from: the rows, the teachers' KV at their tokens, and the loss terms that compare them with the student.

A token of a row is *supervised* where every teacher of the arm has a matching token; the supervised tokens of a batch go *packed*
through the losses: one after another, `sample` saying which row each is of.

    rows ──────────────┐
    teacher_kv ── dataset (or dataset_on_disk) ── batch ── distiller ─┬─ cross-entropy, or logit_kd
                                                                      └─ kv_objective: map, route, fuse ─┬─ kv_distance or relation_kl
                                                                                                         └─ attention_kl
"""
