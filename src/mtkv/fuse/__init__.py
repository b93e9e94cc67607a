"""Fuse several teachers' KV, already in the student's space, with weights from a router (docs/method.md §7).

Words: *router*, what gives each row (and, on demand, layer) its weights over teachers; *query*, the student's KV of a row, pooled;
*prototype*, a teacher's KV of the same row, pooled.

    student's KV ─ prototypes.query_of ────► query ────┐
    teachers' KV ─ prototypes.prototypes_of ► prototypes ┴ routers.build_router(…) ─► weights ─ routers.fuse ─► Σᵢ αᵢ·KVᵢ

Example: 2 rows with 5 supervised tokens in all, `sample = [0, 0, 0, 1, 1]`, 2 teachers, 30 layers, width 192 (2 is K and V):

    kvs [5, 2, 30, 2, 192]   query [2, 30·2·192]   prototypes [2, 2, 30·2·192]   weights [2, 2], rows sum to 1
    fuse(kvs, weights, sample) → [5, 30, 2, 192]       with `per_layer`: query [2, 30, 2·192], weights [2, 2, 30]

The names below load on first use.
"""

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
