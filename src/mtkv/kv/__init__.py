"""Keys before RoPE and values: capture from any architecture, injection, and the store on disk.

`KVCapture`, `KVInjection` and `TeacherKVExtractor` are imported when first asked for, so that `import mtkv.kv` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtkv.kv.capture import KVCapture
    from mtkv.kv.extractor import TeacherKVExtractor
    from mtkv.kv.inject import KVInjection

__all__ = ["KVCapture", "KVInjection", "TeacherKVExtractor"]
_HOMES = {"KVCapture": "capture", "KVInjection": "inject", "TeacherKVExtractor": "extractor"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
