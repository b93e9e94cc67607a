"""The pictures of the report, one module per section of the page.

    Results ─ BUILDERS of `all`: scores, pairs, ablations, training, routing, alignment, latents, cost ─► list of `figure.Figure`

A builder returns the figures whose data exist, else an empty list. `figure` has what they share (labels, intervals, numbers), `palette`
the colours and one style per arm. docs/extending.md shows how to add one.
"""
