"""Keys before RoPE and values: capture from any architecture, injection, selection, and the store on disk (docs/method.md §1, §6, §12).

Words: *KV*, keys before RoPE and values; *importance*, the attention a token gets from the answer; *budget*, how many tokens are kept;
*store*, a teacher's KV of all rows; *shard*, one file of it; *tier*, raw (the teacher's space) or mapped (the student's).

    model ─ attention_hooks ─► capture.KVCapture, with or without gradient      patch.KVInjection: K and V put in from outside
    rows ─ extract ─► shards + index.parquet ─ store.KVStore         online_teacher.OnlineTeacher: the same, read while training
    keys ─ importance, scores ─ select.select_tokens ─► which tokens supervise (row_rng: draws that belong to a row)

Example, Qwen2.5-0.5B (24 layers, 2 KV heads of 64) and a row of 40 tokens:

    with KVCapture(model) as kv: model(ids)      kv.keys()[3] → [1, 2, 40, 64], un-rotated; likewise kv.values()
    KVStore(folder).read("row-7", tokens [8])    → [8, 24, 2, 128]: tokens, stored layers, {K, V}, heads · head_dim

`KVCapture`, `KVInjection` and `TeacherKVExtractor` are imported when first asked for, so that `import mtkv.kv` stays cheap.
"""

from mtkv.provenance.lazy_exports import lazy_exports

_EXPORTS = {
    "KVCapture": "mtkv.kv.capture",
    "KVInjection": "mtkv.kv.patch",
    "TeacherKVExtractor": "mtkv.original_api.extractor",
}
__all__ = ["KVCapture", "KVInjection", "TeacherKVExtractor"]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
