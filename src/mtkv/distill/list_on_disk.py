"""A list for what does not fit in memory: the training rows of an arm and their matches (`resources.train.stream`)."""

import importlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property
from itertools import islice
from mmap import ACCESS_READ, mmap
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

Item = TypeVar("Item")
SCHEMA = pa.schema([("item", pa.large_binary())])
BATCH = 1000  # items that are written together: what finds them again takes some 300 bytes of memory a batch


class ListOnDisk(Sequence[Item]):
    """Like a list, but its items lie in an Arrow file that is mapped into memory, whose pages the kernel drops when memory is short.

    It is extended, then read in any order, also by forked processes; each reading makes a new object with the same bits. Items are what
    `packed` takes. The file is in the folder for temporary files (TMPDIR), has no name, and is gone when the process ends, however it ends.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="mtkv-rows-")  # noqa: SIM115  # open as long as the list is
        self._writer = pa.ipc.new_file(self._file, SCHEMA)

    def extend(self, items: Iterable[Item]) -> None:
        """Add items at the end, before the first is read. Raises OSError when the disk is full."""
        left = iter(items)
        while batch := [packed(item) for item in islice(left, BATCH)]:
            self._writer.write(pa.record_batch([batch], SCHEMA))

    @cached_property
    def _items(self) -> pa.ChunkedArray:
        self._writer.close()
        self._file.flush()
        mapped = mmap(self._file.fileno(), 0, access=ACCESS_READ)
        return pa.ipc.open_file(pa.py_buffer(mapped)).read_all()["item"]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return unpacked(self._items[index].as_buffer())


def packed(item: Any) -> bytes:
    """A text, number or array, or a dataclass, list or mapping of them, as bytes: its outline as JSON, a zero, then those of the arrays."""
    arrays: list[np.ndarray] = []

    def outline(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays.append(np.ascontiguousarray(value))
            return {"type": value.dtype.str, "shape": value.shape}
        if isinstance(value, list):
            return [outline(each) for each in value]
        if is_dataclass(value):
            names = [field.name for field in fields(value)]
            return {"of": [type(value).__module__, type(value).__qualname__]} | {
                n: outline(getattr(value, n)) for n in names
            }
        return {"mapping": {name: outline(each) for name, each in value.items()}} if isinstance(value, dict) else value

    head = json.dumps(outline(item)).encode()
    return b"".join([head, b"\0", *(array.tobytes() for array in arrays)])


def unpacked(data: Any) -> Any:
    """The item that `packed` packed."""
    head, _, rest = bytes(data).partition(b"\0")
    done = 0

    def build(value: Any) -> Any:
        nonlocal done
        if isinstance(value, list):
            return [build(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "type" in value:
            found: np.ndarray = np.ndarray(value["shape"], value["type"], rest, done).copy()
            done += found.nbytes
            return found
        if "mapping" in value:
            return {name: build(each) for name, each in value["mapping"].items()}
        module, name = value.pop("of")
        return getattr(importlib.import_module(module), name)(**{field: build(each) for field, each in value.items()})

    return build(json.loads(head))
