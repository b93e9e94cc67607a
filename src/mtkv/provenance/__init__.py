"""What made a file: atomic writing, digests of settings, files and code, and the card beside every output.

    code_digest(module) ─► a digest that comments and docstrings do not change ─► Snakemake's `params`
    digest.digest_of(settings), file_digest(path); files.atomic_path: the old file or the whole new one
    card.Card: wildcards, config, inputs, git, packages, hardware, wall time, memory ─► card.json

`lazy_exports` loads a package's names on first use. Everything else in mtkv may import this package, so it imports none of the others.
"""
