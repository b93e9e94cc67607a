"""Fuse several teachers' KV with weights from a router. The names below load on first use."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "EntropyRegularizer": "entropy",
    "LearnableRouter": "learnable",
    "build_router": "routers",
    "compute_multi_teacher_prototypes": "kvs",
    "compute_routing_weights": "kvs",
    "fuse": "combine",
    "fuse_kvs_fixed": "kvs",
    "fuse_kvs_learnable": "kvs",
    "fuse_kvs_similarity": "kvs",
    "prototypes_of": "prototypes",
    "query_of": "prototypes",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
