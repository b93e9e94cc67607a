"""Train a latent student: CE of the answer, CE of the chain, CODI's distance, and the chain's KV at the latents.

    row ─ chain_of_thought ─► question, chain, answer ─ dataset.LatentRows ─► batch
      teacher's KV of the chain ─ teacher_kv (self_teacher: the student's own) ─ selection ─► KV at each slot
      objective.LatentDistiller: L = δ·CE(A|Z,Q) + chain_weight·CE(A,C|Q) + codi_weight·codi_loss + KV terms (`mtkv.distill.kv_objective`)
      arm builds rows and module for `mtkv.stages.train`

Example, M = 6, 30 layers, 3 KV heads of 64, a batch of 2 chains of at most 20 tokens: `kv [2, 20, 30, 2, 192]`; selection gives
`index [2, 6, 30, 3]` (a token for each slot, layer and head); `gather_slots` for all 12 slots gives `[12, 30, 2, 192]`.
"""
