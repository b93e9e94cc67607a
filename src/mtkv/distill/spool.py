"""Arrays of one row after the other in a file without a name: in memory stay eight bytes of each row.

The file lies in the folder for temporary files (TMPDIR) and is gone when the process ends, however it ends.
"""

import os
import tempfile
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np
from safetensors.numpy import load, save

Item = TypeVar("Item")


class Spool:
    """Named arrays of each row, appended once and read in any order; they come back with the same shapes, formats and bits."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="mtkv-rows-")  # noqa: SIM115  # open as long as the rows are
        self._ends = array("q", [0])
        self._flushed = True

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a row. Raises OSError when the disk is full."""
        # safetensors writes the memory below an array, whatever its strides are.
        record = save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
        self._file.write(record)
        self._ends.append(self._ends[-1] + len(record))
        self._flushed = False

    def read(self, row: int) -> dict[str, np.ndarray]:
        """The arrays of row number `row`, from 0. By a position of its own, so that forked processes do not disturb each other."""
        if not self._flushed:
            self._file.flush()
            self._flushed = True
        start, end = self._ends[row], self._ends[row + 1]
        record = os.pread(self._file.fileno(), end - start, start)
        if len(record) != end - start:
            raise OSError(f"row number {row}: the file of rows in {tempfile.gettempdir()} is cut off")
        return load(record)


class Spooled(Sequence[Item]):
    """The rows of a spool as objects, each made by `make` when it is asked for."""

    def __init__(self, spool: Spool, make: Callable[[dict[str, np.ndarray]], Item]) -> None:
        self.spool, self.make = spool, make

    def __len__(self) -> int:
        return len(self.spool)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return self.make(self.spool.read(range(len(self))[index]))


def text_array(text: str) -> np.ndarray:
    """A text as bytes `[n]`."""
    return np.frombuffer(text.encode(), dtype=np.uint8)


def array_text(stored: np.ndarray) -> str:
    """What `text_array` was given."""
    return stored.tobytes().decode()
