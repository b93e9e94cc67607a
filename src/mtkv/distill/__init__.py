"""What pulls the student to the teachers: rows with their teachers' KV, and every term of the loss (docs/method.md §6–§9).

Words: *supervised* token, a student token that every teacher of the arm has a partner for; *match*, those tokens of one row and the
teacher tokens they read; *packed*, the supervised tokens of all rows of a batch one after another; *control*, wrong or weightless KV.

    teacher_kv (stored, online, or already projected) ─┐
    rows ─ dataset (list_on_disk) ─►── batch ──────────┴ distiller.Distiller: forward of the student with KVCapture
      ├ CE, or logit_kd
      └ kv_objective.KVObjective: map or adapter, router ─► target ─ kv_distance, relation_kl, attention_kl, layer_schedule ─► terms

Example, a student of 30 layers and KV width 192, 2 rows with 5 supervised tokens in all, teachers of width 128 and 256:

    kv_sample, kv_position [5]   teacher_kv [5, 30, 2, 128] and [5, 30, 2, 256] (layers combined for each of the student's)
    student_kv [5, 30, 2, 192]   target [5, 30, 2, 192]   weights [2, 2] (rows, teachers)   each term: a scalar
"""
