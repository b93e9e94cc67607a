"""Fetch what a study's data needs from the hub into `data.folder`, once and on a machine with network."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkv.data.benchmarks import benchmark_of
from mtkv.data.loading import DataFileError, Origin, fetch
from mtkv.data.sources import DEFAULT_SOURCES, source_of

if TYPE_CHECKING:
    from mtkv.config.data import DataConfig


def wanted_splits(config: "DataConfig", datasets: list[str]) -> list[tuple[Origin, str]]:
    """Data sets and splits that the sources of a study and the benchmarks `datasets` need, each once."""
    sources = [source_of(name, config.extra) for name in config.sources or DEFAULT_SOURCES]
    needed = [(source.origin, source.split) for source in sources]
    for benchmark in (benchmark_of(name, config.extra) for name in datasets):
        needed += [(benchmark.origin, split) for split in (benchmark.split, benchmark.examples) if split]
    return list(dict.fromkeys(needed))


def fetch_data(config: "DataConfig", datasets: list[str]) -> dict[str, Any]:
    """Fetch every wanted split that `data.folder` lacks. Returns `files` (sizes in bytes by name) and `missing` (reasons by name).

    A failure does not stop the others from being fetched. Nothing is fetched for mixture pocket, or without `data.folder`: then the
    hub's own cache is used.
    """
    files: dict[str, int] = {}
    missing: dict[str, str] = {}
    if config.folder is None:
        return {"files": files, "missing": missing}
    for origin, split in wanted_splits(config, datasets):
        try:
            fetched = fetch(origin, split, Path(config.folder), config.revisions.get(origin.name))
        except DataFileError as error:
            missing[f"{origin.name} {split}"] = str(error)
            continue
        files |= {str(path): path.stat().st_size for path in fetched}
    return {"files": files, "missing": missing}
