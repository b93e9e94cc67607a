"""The report: one offline HTML file, and the figures and tables of a paper, from the files of compare and the cards.

Words: *figure*, plotly traces with caption, numbers and table; *still*, the same as SVG and PDF; *word*, *phrase*, English text with its
Chinese in static/strings.toml; *view*, one of the alternatives that a figure shows.

    results/<study>/ ─ results.read_results ─► Results ─┬ figures.all ─► Figures ─ static_figures ─► SVG, PDF
                                                         ├ tables, summary ─► CSV, Markdown, LaTeX, results.json
                                                         └ item_browser, latent_results
      all of it ─ page (called by `mtkv.stages.report`) ─► report/index.html and what lies beside it

Shares are 0..1 in `Results`, percentage points on the page. The names below load on first use, so that `import mtkv.report` imports none
of their modules.
"""

from mtkv.provenance.lazy_exports import lazy_exports

_EXPORTS = {
    "visualize_alignment": "mtkv.original_api.visualize",
    "visualize_layer_mapping": "mtkv.original_api.visualize",
}
__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
