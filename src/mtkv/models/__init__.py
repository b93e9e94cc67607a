"""Models and tokenizers: the pocket models, loading, encoding."""
