"""Bring a teacher's KV to the student's tokens, layers, heads and width (docs/method.md §2–§5).

Words: *span*, the bytes of a row's text that a token covers; *match*, the teacher tokens that one student token is compared with, and
their weights; *map*, closed form and frozen; *adapter*, a map that is trained with the student.

    byte spans of both tokenizations ─ token_alignment ─► TimeMatch ─┐
    layer counts (or CKA) ─ layers ─► layer weights ─────────────────┼─► matched KV of both ─ closed_form_maps ─► KVMap
    teacher's and raw student's KV of the calibration rows ──────────┘                       (trained: adapters)

Example, Qwen2.5-0.5B (24 layers, 2 KV heads of 64) to SmolLM2-135M (30 layers, 3 of 64); 2 is K and V, a width is heads · head_dim:

    n matched tokens, teacher   [n, 24, 2, 128]   layer weights [30, 24]   combine_layers → [n, 30, 2, 128]
    the student's own           [n, 30, 2, 192]   fit_map → KVMap.weight   [30, 2, 128, 192]
    KVMap.target(teacher)       [n, 30, 2, 192]

The names below load on first use, so that `import mtkv.align` imports none of their modules.
"""

from mtkv.provenance.lazy_exports import lazy_exports

_EXPORTS = {
    "apply_char_alignment": "mtkv.original_api.time_alignment",
    "align_sequence_lengths": "mtkv.original_api.time_alignment",
    "build_char_align_matrix": "mtkv.original_api.time_alignment",
    "build_safe_linear_indices": "mtkv.original_api.time_alignment",
    "safe_time_resample": "mtkv.original_api.time_alignment",
    "Spans": "mtkv.align.byte_spans",
    "TimeMatch": "mtkv.align.token_alignment",
    "look_ahead": "mtkv.align.token_alignment",
    "match_time": "mtkv.align.token_alignment",
    "printed_spans": "mtkv.align.byte_spans",
    "layer_map": "mtkv.align.layers",
    "layer_weights": "mtkv.align.layers",
    "stored_layers": "mtkv.align.layers",
    "cka_similarity": "mtkv.align.cka",
    "linear_cka": "mtkv.align.cka",
    "build_multi_teacher_layer_map": "mtkv.original_api.time_alignment",
    "interpolate_teacher_layers": "mtkv.original_api.time_alignment",
    "KVMap": "mtkv.align.closed_form_maps",
    "combine_layers": "mtkv.align.closed_form_maps",
    "fit_map": "mtkv.align.closed_form_maps",
    "build_adapter": "mtkv.align.adapters",
    "KVDimensionProjector": "mtkv.original_api.projectors",
    "KVProjector": "mtkv.original_api.projectors",
    "MultiTeacherHeadDimAdapter": "mtkv.original_api.projectors",
    "MultiTeacherRoPEScaler": "mtkv.original_api.rope_translation",
}
__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
