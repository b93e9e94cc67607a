"""Save the rows that a teacher has read while its shard is not complete, so that an interrupted extraction can go on.

They are saved in parts; a part is a step of the job's checkpoint with one safetensors file. Parts are independent of each other: the
rows of a damaged one are read again.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mtkv.checkpointing.preemption import Preemption
from mtkv.checkpointing.store import INTERVAL, Checkpoint, steps

FILE = "rows.safetensors"


class RowReading(NamedTuple):
    """What one forward gives for one row, on the CPU: `kv [time, layers, 2, width]`, likelihood, `importance [time, layers, kv_heads]`."""

    kv: Tensor
    likelihood: float
    importance: Tensor | None


class ExtractionParts:
    """Context manager around the reading of `total` rows: `found` holds the rows of earlier attempts by number, `add` takes a new one.

    The rows since the last save become a part every `INTERVAL` seconds, or at once on USR1, after which the process ends (SavedExit).
    Both happen only after whole batches of `batch_size` rows. With `checkpoint` None nothing is saved.
    """

    def __init__(self, checkpoint: Checkpoint | None, total: int, batch_size: int) -> None:
        self._checkpoint, self._total, self._batch_size = checkpoint, total, batch_size
        self._new: dict[int, RowReading] = {}
        self._preemption = Preemption()
        self.found: dict[int, RowReading] = {}

    def __enter__(self) -> Self:
        if self._checkpoint is not None:
            self._preemption.__enter__()
            self._checkpoint.keep = None
            self._next = max(steps(self._checkpoint.folder), default=-1) + 1
            for part in self._checkpoint.intact().values():
                self.found.update(read_part(part / FILE))
            if self._next:
                self._checkpoint.note_resume(len(self.found))
        self._done, self._saved = len(self.found), time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._checkpoint is not None:
            self._preemption.__exit__(kind, error, trace)

    def add(self, index: int, reading: RowReading) -> None:
        """Take the reading of row number `index`. Raises DiskFullError when there is no room for a part; earlier parts stay."""
        if self._checkpoint is None:
            return
        self._new[index] = reading
        if len(self._new) % self._batch_size:
            return
        done = self._done + len(self._new)
        self._checkpoint.progress(done, self._total, "rows")
        if self._preemption.asked or time.monotonic() - self._saved > INTERVAL:
            self._save()
        if self._preemption.asked:
            self._preemption.leave(f"{self._done} of {self._total} rows")

    def _save(self) -> None:
        assert self._checkpoint is not None
        new, self._new = self._new, {}
        size = sum(reading.kv.nbytes for reading in new.values())
        self._checkpoint.save(self._next, lambda folder: write_part(folder / FILE, new), size)
        self._next += 1
        self._done += len(new)
        self._saved = time.monotonic()


def write_part(path: Path, rows: Mapping[int, RowReading]) -> None:
    """Write rows, given by number, to one safetensors file."""
    tensors = {f"{index}.kv": reading.kv.contiguous() for index, reading in rows.items()}
    tensors |= {
        f"{index}.importance": reading.importance.contiguous()
        for index, reading in rows.items()
        if reading.importance is not None
    }
    tensors["index"] = torch.tensor(list(rows))
    tensors["likelihood"] = torch.tensor([reading.likelihood for reading in rows.values()], dtype=torch.float64)
    save_file(tensors, path)


def read_part(path: Path) -> Iterator[tuple[int, RowReading]]:
    """(number, reading) of the rows that `write_part` wrote, in the same order."""
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        for index, likelihood in zip(
            file.get_tensor("index").tolist(), file.get_tensor("likelihood").tolist(), strict=True
        ):
            importance = file.get_tensor(f"{index}.importance") if f"{index}.importance" in names else None
            yield index, RowReading(file.get_tensor(f"{index}.kv"), likelihood, importance)
