"""Keys before RoPE and values: capture from any architecture, injection, and the store on disk.

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
