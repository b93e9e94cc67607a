"""What made a file: atomic writing, digests of code and config, and the card beside every output."""
