"""What the guides of the original design call, for notebooks. No study uses it.

Tensors here are `[batch, heads, time, head_dim]`, as transformers caches hold them (the extractor's without batch), where the rest of the
library packs tokens.
`mtkv.kv`, `mtkv.align`, `mtkv.fuse` and `mtkv.report` export these names.

    texts ─ extractor ─► KV of every layer ─ time_alignment ─► student's time, student's layers
                                     (rope_translation, for keys that come already rotated)          │
        student's layers, `[batch, heads, time, dim]` ─ projectors ─► student's heads and width ─ fusion ─► one KV
                                      visualize: pictures of the layer map and of the token matches
"""
