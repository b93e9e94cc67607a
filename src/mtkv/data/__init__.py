"""Questions to rows of text: the pocket tasks, the styles, the splits and the leakage check."""
