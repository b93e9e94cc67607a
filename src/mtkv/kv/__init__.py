"""Keys before RoPE and values: capture from any architecture (method.md §1), selection of tokens (§6), injection, store on disk (§12).

model + rows → `capture.KVCapture` → K, V `[batch, kv_heads, time, head_dim]` per layer
             → `extract` (packed as `[time, layers, 2, width]`, 2 = K and V, width = kv_heads·head_dim) → `shards` → `store.KVStore`
             → `online_teacher` (the same interface, without files)        `patch.KVInjection`: the way back into a model's attention

*Packed KV*: the layout above. *Tier*: raw (the teacher's own space) or mapped (the student's). *Importance*: attention from the answer.
The exported names are imported on first use, so that `import mtkv.kv` stays cheap.
"""

from mtkv.provenance.lazy_exports import lazy_exports

_EXPORTS = {
    "KVCapture": "mtkv.kv.capture",
    "KVInjection": "mtkv.kv.patch",
    "TeacherKVExtractor": "mtkv.original_api.extractor",
}
__all__ = ["KVCapture", "KVInjection", "TeacherKVExtractor"]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
