"""One module per family of figures, `Results` → list of `Figure` (plotly traces, caption, table); `all` puts them in order."""
