"""The calls of the original design guides, for notebooks and scripts; no study uses them.

texts → `extractor` → K, V per layer `[kv_heads, time, head_dim]` → `time_alignment` → `layer_maps` → `projectors` → `fusion` → target KV
`rope_translation` rotates keys that come after RoPE; `visualize` draws an alignment. `mtkv.kv`, `mtkv.align`, `mtkv.fuse` export the names.
"""
