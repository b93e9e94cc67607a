"""A list for what does not fit in memory: the training rows of an arm and their matches (`resources.train.stream`)."""

import pickle
import tempfile
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import islice
from mmap import ACCESS_READ, mmap
from typing import Any, TypeVar

import pyarrow as pa

Item = TypeVar("Item")
SCHEMA = pa.schema([("item", pa.large_binary())])
BATCH = 1000  # items that are written together: what finds them again takes some 300 bytes of memory a batch


class ListOnDisk(Sequence[Item]):
    """Like a list, but its items lie in an Arrow file that is mapped into memory, whose pages the kernel drops when memory is short.

    It is extended, then read in any order, also by forked processes; each reading makes a new object with the same bits. Items are what
    can be pickled. The file is in the folder for temporary files (TMPDIR), has no name, and is gone when the process ends, however it ends.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="mtkv-rows-")  # noqa: SIM115  # open as long as the list is
        self._writer = pa.ipc.new_file(self._file, SCHEMA)

    def extend(self, items: Iterable[Item]) -> None:
        """Add items at the end, before the first is read. Raises OSError when the disk is full."""
        left = iter(items)
        while batch := [pickle.dumps(item, protocol=5) for item in islice(left, BATCH)]:
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
        return pickle.loads(self._items[index].as_buffer())
