"""Bring a teacher's KV to the student's tokens, layers, heads and width.

The names below load on first use, so that `import mtkv.align` imports none of their modules.
"""

from mtkv.provenance.lazy import lazy_exports

_EXPORTS = {
    "apply_char_alignment": "time",
    "align_sequence_lengths": "time",
    "build_char_align_matrix": "time",
    "build_safe_linear_indices": "time",
    "safe_time_resample": "time",
    "Spans": "tokens",
    "TimeMatch": "match",
    "look_ahead": "match",
    "match_time": "match",
    "printed_spans": "token_spans",
    "layer_map": "layers",
    "layer_weights": "layers",
    "stored_layers": "layers",
    "cka_similarity": "cka",
    "linear_cka": "cka",
    "build_multi_teacher_layer_map": "layer_maps",
    "interpolate_teacher_layers": "layer_maps",
    "KVMap": "maps",
    "combine_layers": "maps",
    "fit_map": "maps",
    "build_adapter": "heads",
    "KVDimensionProjector": "projectors",
    "KVProjector": "projectors",
    "MultiTeacherHeadDimAdapter": "projectors",
    "MultiTeacherRoPEScaler": "rope",
}
__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
