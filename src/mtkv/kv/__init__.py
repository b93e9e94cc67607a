"""Keys before RoPE and values: capture from any architecture, and the store on disk."""
