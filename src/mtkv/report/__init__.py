"""The report: one offline HTML file, and the figures and tables of a paper, from the files of compare and the cards.

The names below load on first use, so that `import mtkv.report` imports none of their modules.
"""

from mtkv.provenance.lazy_exports import lazy_exports

_EXPORTS = {
    "visualize_alignment": "mtkv.original_api.visualize",
    "visualize_layer_mapping": "mtkv.original_api.visualize",
}
__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
