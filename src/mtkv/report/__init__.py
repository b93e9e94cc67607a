"""The report: one offline HTML file, and the figures and tables of a paper, from the files of compare and the cards."""
