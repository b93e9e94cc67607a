"""Read real data from a folder of plain files (`data.folder`), or from the Hugging Face hub and its cache.

In: an `Origin`, a split and a folder or None. Out: records (dicts) in the data set's own schema, by configuration. Whatever is absent is
one error that names the data set, where it was looked for and what to do. Files may be JSON (a list, or an object that holds one), JSON
lines, CSV or parquet. CSV values stay text: an option that reads "None", "NA" or "0.50" is an answer, not a missing value or a number.
"""

import csv
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mtkv.provenance.files import atomic_path

Record = dict[str, Any]
HOLDERS = ("examples", "data", "rows")  # keys under which a JSON object keeps its records


class DataFileError(ValueError):
    """A data file that cannot be read, or a data set that is not where it should be."""


def read_records(path: Path) -> list[Record]:
    """All records of a file. Raises DataFileError naming the file for an unknown format, broken content or no records."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataFileError(f"{path}: unknown format; allowed: {', '.join(READERS)}")
    try:
        records = reader(path)
    except (ValueError, OSError, csv.Error) as error:  # JSON, Unicode and Arrow errors are ValueErrors
        raise DataFileError(f"{path}: cannot be read: {error}") from error
    if not records:
        raise DataFileError(f"{path}: holds no records")
    if not all(isinstance(record, dict) for record in records):
        raise DataFileError(f"{path}: holds records that are no mappings of field names to values")
    return records


def _json(path: Path) -> list[Record]:
    """One JSON value, or several one after the other (Math23K's file: objects over several lines each)."""
    text, decoder, values, place = path.read_text(encoding="utf-8-sig"), json.JSONDecoder(), [], 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        value, place = decoder.raw_decode(text, place)
        values.append(value)
    if len(values) != 1:
        return values
    whole = values[0]
    if isinstance(whole, dict):
        held = [whole[key] for key in HOLDERS if isinstance(whole.get(key), list)]
        return held[0] if held else [whole]
    return whole if isinstance(whole, list) else values


def _json_lines(path: Path) -> list[Record]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def _csv(path: Path) -> list[Record]:
    """Rows of a CSV file with a header. A first column without a name, pandas' index, is left out."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has not as many values as the header has names")
    return [{name: value for name, value in row.items() if name} for row in rows]


def _parquet(path: Path) -> list[Record]:
    return pq.read_table(path).to_pylist()


READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}


class Records(list[Record]):
    """A list of the records of a split that remembers which file each is from. `files`: (file name, its records), in order."""

    def __init__(self, files: Sequence[tuple[str, list[Record]]]) -> None:
        super().__init__(record for _, records in files for record in records)
        self._files = [(name, len(records)) for name, records in files]

    def where(self, index: int) -> str:
        """File and number of a record, counted from 0 as the records of that file are."""
        for name, count in self._files:
            if index < count:
                return f"{name}, record {index}"
            index -= count
        raise IndexError(f"there is no record {index} behind the last")


@dataclass(frozen=True)
class Origin:
    """Where one data set is found. `hub`: its id; `configs`: its parts there; `files`: patterns of its files in a local folder, tried in
    order, with the fields {config} and {split}; `hub_file`: the file to read where the package `datasets` has no loader for it.
    """

    name: str
    hub: str
    configs: tuple[str, ...] = ("default",)
    files: tuple[str, ...] = ()
    hub_file: str | None = None
    gated: bool = False

    def patterns(self, config: str, split: str) -> list[str]:
        """File patterns to try, the origin's own first, then what `fetch` writes."""
        own = [pattern.format(config=config, split=split) for pattern in self.files]
        fetched = [f"{config}/{split}.parquet", f"{split}.parquet" if len(self.configs) == 1 else ""]
        return [*own, *filter(None, fetched)]


def load_origin(origin: Origin, split: str, folder: Path | None, revision: str | None = None) -> dict[str, Records]:
    """Records of a split, by configuration. Raises DataFileError when any configuration is absent or unreadable."""
    return {config: _load(origin, config, split, folder, revision) for config in origin.configs}


def local_files(origin: Origin, config: str, split: str, folder: Path) -> list[Path]:
    """The files of one split in a local folder, sorted; empty when there are none."""
    for pattern in origin.patterns(config, split):
        found = sorted(path for path in (folder / origin.name).glob(pattern) if path.suffix.lower() in READERS)
        if found:
            return found
    return []


def fetch(origin: Origin, split: str, folder: Path, revision: str | None = None) -> list[Path]:
    """Copy a split from the hub into `folder`, one file per configuration; files that are there are kept. Returns the files.

    Raises DataFileError when one cannot be had.
    """
    return [_fetch(origin, config, split, Path(folder), revision) for config in origin.configs]


def _fetch(origin: Origin, config: str, split: str, folder: Path, revision: str | None) -> Path:
    part = f"{split}.parquet" if len(origin.configs) == 1 else f"{config}/{split}.parquet"
    path = folder / origin.name / (origin.hub_file or part)
    if not path.is_file():
        with _explained(origin, config, split, revision), atomic_path(path) as temporary:
            if origin.hub_file:
                shutil.copyfile(_hub_file(origin, revision), temporary)
            else:
                _hub_split(origin, config, split, revision).to_parquet(temporary)
    return path


def _load(origin: Origin, config: str, split: str, folder: Path | None, revision: str | None) -> Records:
    if folder is None:
        return _from_hub(origin, config, split, revision)
    files = local_files(origin, config, split, folder)
    if not files:
        looked = ", ".join(str(folder / origin.name / pattern) for pattern in origin.patterns(config, split))
        raise DataFileError(
            f"{origin.name}: no file of split {split}{_part(config)}; looked for {looked}. Put the files there, "
            f"or fetch {origin.hub} from the hub (data.folder: null){_licence(origin)}"
        )
    return Records([(str(file), read_records(file)) for file in files])


def _from_hub(origin: Origin, config: str, split: str, revision: str | None) -> Records:
    """Records of the hub's data set, from its cache where there is no network."""
    with _explained(origin, config, split, revision):
        if origin.hub_file:
            return Records([(f"{origin.hub}/{origin.hub_file}", read_records(_hub_file(origin, revision)))])
        records = _hub_split(origin, config, split, revision).to_list()
        return Records([(f"{origin.hub}, split {split}{_part(config)}", records)])


def _hub_file(origin: Origin, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    assert origin.hub_file is not None
    return Path(hf_hub_download(origin.hub, origin.hub_file, repo_type="dataset", revision=revision))


def _hub_split(origin: Origin, config: str, split: str, revision: str | None) -> Any:
    """The `datasets.Dataset` of a split; imported here, because local files need nothing of it."""
    import datasets

    return datasets.load_dataset(origin.hub, None if config == "default" else config, split=split, revision=revision)


@contextmanager
def _explained(origin: Origin, config: str, split: str, revision: str | None) -> Iterator[None]:
    """Inside, any failure of the hub (network, gate, revision, split) becomes a DataFileError; `datasets` has no common class for them."""
    try:
        yield
    except DataFileError:
        raise
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else ""
        at = f" at revision {revision}" if revision else ""
        raise DataFileError(
            f"{origin.name}: split {split}{_part(config)} of {origin.hub}{at} could not be loaded from the hub or its cache "
            f"({type(error).__name__}: {said}). Fetch it on a machine with network, or put its files into a folder "
            f"and name that in data.folder{_licence(origin)}"
        ) from error


def _part(config: str) -> str:
    return "" if config == "default" else f" of {config}"


def _licence(origin: Origin) -> str:
    if not origin.gated:
        return ""
    page = f"https://huggingface.co/datasets/{origin.hub}"
    return f". It is gated: accept its terms at {page}, then `hf auth login`"
