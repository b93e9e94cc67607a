"""Fuse several teachers' KV with weights from a router. The names below load on first use."""

from mtkv.provenance.lazy import lazy_exports

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
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
