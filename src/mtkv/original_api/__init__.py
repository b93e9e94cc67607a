"""original_api."""
