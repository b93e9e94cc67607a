"""A list for what does not fit in memory: the training rows of an arm and their matches (`resources.train.stream`)."""

import importlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property
from io import BytesIO
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
    arrays: list[bytes] = []
    outline = json.dumps(_outline(item, arrays))
    return b"".join([outline.encode(), b"\0", *arrays])


def unpacked(data: Any) -> Any:
    """The item that `packed` packed."""
    outline, _, arrays = bytes(data).partition(b"\0")
    return _built(json.loads(outline), BytesIO(arrays))


def _outline(value: Any, arrays: list[bytes]) -> Any:
    if isinstance(value, np.ndarray):
        arrays.append(value.tobytes())
        return {"type": value.dtype.str, "shape": value.shape}
    if isinstance(value, list):
        return [_outline(each, arrays) for each in value]
    if isinstance(value, dict):
        return {"mapping": {name: _outline(each, arrays) for name, each in value.items()}}
    if is_dataclass(value):
        parts = {field.name: _outline(getattr(value, field.name), arrays) for field in fields(value)}
        return {"of": [type(value).__module__, type(value).__qualname__], "parts": parts}
    return value


def _built(outline: Any, arrays: BytesIO) -> Any:
    if isinstance(outline, list):
        return [_built(each, arrays) for each in outline]
    if not isinstance(outline, dict):
        return outline
    if "type" in outline:
        found: np.ndarray = np.empty(outline["shape"], outline["type"])
        arrays.readinto(found.reshape(-1).view(np.uint8).data)
        return found
    if "mapping" in outline:
        return {name: _built(each, arrays) for name, each in outline["mapping"].items()}
    module, name = outline["of"]
    parts = {name: _built(each, arrays) for name, each in outline["parts"].items()}
    return getattr(importlib.import_module(module), name)(**parts)
