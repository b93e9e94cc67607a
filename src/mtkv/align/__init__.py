"""Bring a teacher's KV to the student's tokens (method.md §2), layers (§3), heads and width (§4).

teacher KV `[teacher_time, stored_layers, 2, teacher_width]`
  → `token_alignment` (over `byte_spans`): `[n, stored_layers, 2, teacher_width]` at n supervised student tokens
  → `layers` + `closed_form_maps.combine_layers`: `[n, student_layers, 2, teacher_width]`
  → `closed_form_maps` (frozen) or `adapters` (trained): `[n, student_layers, 2, student_width]`

*Boundary*: a byte at which a token ends. *Map*: fitted in closed form and frozen; *adapter*: trained with the student.
The exported names load on first use, so that `import mtkv.align` imports none of their modules.
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
    "build_multi_teacher_layer_map": "mtkv.original_api.layer_maps",
    "interpolate_teacher_layers": "mtkv.original_api.layer_maps",
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
