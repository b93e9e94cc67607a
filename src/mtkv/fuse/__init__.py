"""Fuse several teachers' KV, all in the student's space, with weights from a router (method.md §7).

student's KV → `prototypes.query_of` → `[batch, features]`                ─┐
teachers' KV → `prototypes.prototypes_of` → `[batch, teachers, features]` ─┴→ a router of `routers` → weights `[batch, teachers]`
weights + teachers' KV `[tokens, teachers, layers, 2, width]` → `routers.fuse` → one target `[tokens, layers, 2, width]`

*Router*: weighs the teachers of a row. *Prototype*: a teacher's KV of the row, pooled. The exported names load on first use.
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
