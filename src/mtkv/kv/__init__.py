"""Keys before RoPE and values: capture from any architecture, injection, and the store on disk.

`KVCapture`, `KVInjection` and `TeacherKVExtractor` are imported when first asked for, so that `import mtkv.kv` stays cheap.
"""

from typing import TYPE_CHECKING

from mtkv.provenance.lazy import lazy_exports

if TYPE_CHECKING:
    from mtkv.kv.capture import KVCapture
    from mtkv.kv.extractor import TeacherKVExtractor
    from mtkv.kv.inject import KVInjection

_EXPORTS = {"KVCapture": "capture", "KVInjection": "inject", "TeacherKVExtractor": "extractor"}
__all__ = ["KVCapture", "KVInjection", "TeacherKVExtractor"]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
