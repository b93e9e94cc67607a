"""A fingerprint of a folder of data files, on which the data rule depends besides its settings. Imports nothing heavy."""

from pathlib import Path

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


def state_of(folder: str | None) -> list[list[str | int]]:
    """Name, size and modification time (ns) of every data file below `folder`, sorted; nothing for None or no folder."""
    if folder is None:
        return []
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return [[str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
