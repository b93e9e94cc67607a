"""Fuse several teachers' KV with weights from a router. The names below load on first use."""

from mtkv.provenance.lazy_exports import lazy_exports

_EXPORTS = {
    "EntropyRegularizer": "mtkv.fuse.routers",
    "LearnableRouter": "mtkv.fuse.routers",
    "build_router": "mtkv.fuse.routers",
    "compute_multi_teacher_prototypes": "mtkv.original_api.fusion",
    "compute_routing_weights": "mtkv.original_api.fusion",
    "fuse": "mtkv.fuse.routers",
    "fuse_kvs_fixed": "mtkv.original_api.fusion",
    "fuse_kvs_learnable": "mtkv.original_api.fusion",
    "fuse_kvs_similarity": "mtkv.original_api.fusion",
    "prototypes_of": "mtkv.fuse.prototypes",
    "query_of": "mtkv.fuse.prototypes",
}
__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
