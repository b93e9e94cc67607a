"""The report: one offline HTML file, and the figures and tables of a paper, from the files of compare and the cards.

    results/<study>/ → results (Results), latent_results ─┬→ figures/* (Figure) ─┬→ the page (mtkv.stages.report)
                                                          ├→ tables, claim_rows  ├→ static_figures (SVG, PDF)
                                                          └→ item_browser        └→ files, summary (CSV, Markdown, LaTeX, JSON)

`strings` has the page's words in English and Chinese. The names below load on first use, so that `import mtkv.report` is quick.
"""

from mtkv.provenance.lazy_exports import lazy_exports

_EXPORTS = {
    "visualize_alignment": "mtkv.original_api.visualize",
    "visualize_layer_mapping": "mtkv.original_api.visualize",
}
__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
