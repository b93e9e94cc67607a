"""Read rows through one frozen teacher and store its KV: the stage `teachers`.

In: rows of text. Out: one shard of the store (see `mtkv.kv.store`). The teacher gets its own token ids; right padding, so that
positions count from the row's first token. While the shard is not complete, the rows read so far are saved in parts, so that an
interrupted extraction can go on: a part is a step of the job's checkpoint with one safetensors file. Parts are independent of each other:
the rows of a damaged one are read again.
"""

import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from mtkv.checkpointing.preemption import Preemption
from mtkv.checkpointing.store import INTERVAL, Checkpoint, steps
from mtkv.config.models import ModelConfig
from mtkv.kv.capture import KVCapture, check_keys
from mtkv.kv.importance import AskedAttention
from mtkv.kv.row_statistics import target_statistics
from mtkv.kv.shards import StoredRow, write_shard
from mtkv.models.device_placement import SINGLE, all_heads, input_device
from mtkv.models.load import DTYPES, load_model, load_tokenizer, model_kv_heads
from mtkv.models.tokenization import EncodedRow, encode_rows, pad_batch

FILE = "rows.safetensors"


class RowReading(NamedTuple):
    """What one forward gives for one row, on the CPU: `kv [time, layers, 2, width]`, `statistics` by name (`ROW_STATISTICS`), and
    `importance [time, layers, kv_heads]`."""

    kv: Tensor
    statistics: Mapping[str, float]
    importance: Tensor | None


class ExtractionParts(Preemption):
    """Context manager around the reading of `total` rows: `found` holds the rows of earlier attempts by number, `add` takes a new one.

    The rows since the last save become a part every `INTERVAL` seconds, or at once on USR1, after which the process ends (SavedExit).
    Both happen only after whole batches of `batch_size` rows. With `checkpoint` None nothing is saved.
    """

    def __init__(self, checkpoint: Checkpoint | None, total: int, batch_size: int) -> None:
        super().__init__(wanted=checkpoint is not None)
        self._checkpoint, self._total, self._batch_size = checkpoint, total, batch_size
        self._new: dict[int, RowReading] = {}
        self.found: dict[int, RowReading] = {}

    def __enter__(self) -> Self:
        super().__enter__()
        if self._checkpoint is not None:
            self._checkpoint.keep = None
            self._next = max(steps(self._checkpoint.folder), default=-1) + 1
            for part in self._checkpoint.intact().values():
                self.found.update(read_part(part / FILE))
            if self._next:
                self._checkpoint.note_resume(len(self.found))
        self._done, self._saved = len(self.found), time.monotonic()
        return self

    def add(self, index: int, reading: RowReading) -> None:
        """Take the reading of row number `index`. Raises DiskFullError when there is no room for a part; earlier parts stay."""
        if self._checkpoint is None:
            return
        self._new[index] = reading
        if len(self._new) % self._batch_size:
            return
        done = self._done + len(self._new)
        self._checkpoint.progress(done, self._total, "rows")
        if self.asked or time.monotonic() - self._saved > INTERVAL:
            self._save()
        if self.asked:
            self.leave(f"{self._done} of {self._total} rows")

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
    for name in next(iter(rows.values())).statistics:
        tensors[name] = torch.tensor([reading.statistics[name] for reading in rows.values()], dtype=torch.float64)
    save_file(tensors, path)


def read_part(path: Path) -> Iterator[tuple[int, RowReading]]:
    """(number, reading) of the rows that `write_part` wrote, in the same order."""
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        statistics = {name: file.get_tensor(name).tolist() for name in names if "." not in name and name != "index"}
        for place, index in enumerate(file.get_tensor("index").tolist()):
            importance = file.get_tensor(f"{index}.importance") if f"{index}.importance" in names else None
            noted = {name: values[place] for name, values in statistics.items()}
            yield index, RowReading(file.get_tensor(f"{index}.kv"), noted, importance)


COLUMNS = ["id", "prompt", "target"]


@dataclass(frozen=True)
class StorePlan:
    """What a store holds of each row, in which format, in how many `shards`; the teacher reads `batch_size` rows at once.

    `importance` (attention from a row's `answer_tokens`) and `statistics`, names of `ROW_STATISTICS`, cost a pass over the attention and
    over the output head: they are for studies whose arms use them.
    """

    layers: Sequence[int]
    shards: int
    dtype: str
    batch_size: int
    importance: bool = False
    statistics: Sequence[str] = ()


def extract_shard(
    teacher: ModelConfig,
    rows: Sequence[Path],
    shard: int,
    plan: StorePlan,
    output: Path,
    checkpoint: Checkpoint | None = None,
    placement: str = SINGLE,
) -> dict[str, Any]:
    """Stage function: write shard `shard` of the store that is planned of one teacher.

    Row i of all `rows` files taken together belongs to shard i·shards // (number of rows). The job needs about twice its shard in memory.
    With `checkpoint` the rows read so far are saved until the shard is written, and the next attempt reads only the others. Returns the
    facts for the card. Raises ValueError when a shard would be empty, SavedExit on USR1.
    """
    model_kv_heads(teacher)  # refuses layers that differ
    tokenizer, model = load_tokenizer(teacher), load_model(teacher, placement)
    columns = [*COLUMNS, "reasoning_end"] if plan.importance else COLUMNS
    frame = pd.concat([pd.read_parquet(path, columns=columns) for path in rows], ignore_index=True)
    if len(frame) < plan.shards:
        raise ValueError(f"{len(frame)} rows cannot fill {plan.shards} shards; lower teachers.shards")
    frame = frame[np.arange(len(frame)) * plan.shards // len(frame) == shard]
    encoded = encode_rows(tokenizer, list(frame["prompt"]), list(frame["target"]))
    asking = None
    if plan.importance:
        asking = [answer_tokens(row, end) for row, end in zip(encoded, frame["reasoning_end"], strict=True)]
    with ExtractionParts(checkpoint, len(encoded), plan.batch_size) as parts:
        readings, known = dict(parts.found), parts.found.keys()
        for index, read in read_rows(model, encoded, plan.layers, plan.batch_size, plan.statistics, asking, known):
            # Quantised formats need every row first.
            readings[index] = read._replace(kv=read.kv.to(DTYPES.get(plan.dtype, read.kv.dtype)))
            parts.add(index, readings[index])
        stored = [
            StoredRow(id, read.kv, row.byte_end, row.byte_start, read.statistics, read.importance)
            for id, row, read in zip(frame["id"], encoded, (readings[i] for i in range(len(encoded))), strict=True)
        ]
        write_shard(output, stored, plan.layers, plan.dtype)
        if checkpoint is not None:
            checkpoint.finish()
    return {
        "rows": len(stored),
        "tokens": sum(len(row.input_ids) for row in encoded),
        "layers": list(plan.layers),
        "chat_date": teacher.chat_date,
        "bytes": output.stat().st_size,
        "resumed_at": checkpoint.resumed_at if checkpoint is not None else [],
    }


def answer_tokens(row: EncodedRow, reasoning_end: int) -> Bool[np.ndarray, " time"]:
    """True at the target tokens behind byte `reasoning_end` of the row, where its reasoning ends; at all target tokens if none is."""
    within = np.flatnonzero((row.byte_end > 0) & (row.byte_end <= reasoning_end))
    answer = row.is_target & (np.arange(len(row.is_target)) > within.max(initial=-1))
    return answer if answer.any() else row.is_target


def read_kv(
    model: PreTrainedModel, rows: Sequence[EncodedRow], layers: Sequence[int], batch_size: int
) -> Iterator[Float[Tensor, "time layers 2 width"]]:
    """K before RoPE and V of the given layers for each row, in order, on the CPU and without padding; `read_rows` gives more."""
    found = {index: reading.kv for index, reading in read_rows(model, rows, layers, batch_size)}
    for index in range(len(rows)):
        yield found.pop(index)


@torch.no_grad()
def read_rows(
    model: PreTrainedModel,
    rows: Sequence[EncodedRow],
    layers: Sequence[int],
    batch_size: int,
    statistics: Sequence[str] = (),
    asking: Sequence[Bool[np.ndarray, " time"]] | None = None,
    skip: Container[int] = (),
) -> Iterator[tuple[int, RowReading]]:
    """Number and reading of every row. Rows go through the model in batches of similar length, so they do not come in order.

    `statistics`: names of `ROW_STATISTICS`. `asking`: for each row the tokens whose attention is its importance; None for no importance.
    A batch whose rows are all in `skip` is left out, which changes nothing in the others, to the last bit.
    """
    check_keys(model)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    device = input_device(model)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        if all(index in skip for index in batch):
            continue
        input_ids, is_target = (
            torch.from_numpy(pad_batch([getattr(rows[index], name) for index in batch], 0)).to(device)
            for name in ("input_ids", "is_target")
        )
        lengths = [len(rows[index].input_ids) for index in batch]
        mask = torch.arange(input_ids.shape[1]) < torch.tensor(lengths)[:, None]
        attention = None
        if asking is not None:
            marked = torch.from_numpy(pad_batch([asking[index] for index in batch], False)).to(device)
            attention = AskedAttention(model, marked, layers, rows_at_once=1)
        with KVCapture(model) as capture, attention or nullcontext():
            output = model.base_model(input_ids=input_ids, attention_mask=mask.long().to(device), use_cache=False)
            kv = packed_kv(capture, layers).cpu()
        found = target_statistics(model, output.last_hidden_state, input_ids, is_target, statistics)
        weights = attention.importance.cpu().permute(0, 3, 1, 2).half() if attention else None
        for i, (index, length) in enumerate(zip(batch, lengths, strict=True)):
            yield (
                index,
                RowReading(
                    kv[i, :length].clone(),
                    {name: float(values[i]) for name, values in found.items()},
                    None if weights is None else weights[i, :length].clone(),
                ),
            )


def packed_kv(capture: KVCapture, layers: Sequence[int]) -> Float[Tensor, "batch time layers 2 width"]:
    """K and V of the given layers as one tensor in the store's layout (head 0's channels first), in the model's own format."""
    keys, values = (
        [all_heads(x, capture.model) for x in found] for found in (capture.keys(layers), capture.values(layers))
    )
    check_shapes(capture, keys + values)
    batch, heads, time, head_dim = keys[0].shape
    packed = keys[0].new_empty(batch, time, len(layers), 2, heads * head_dim)
    for place, pair in enumerate(zip(keys, values, strict=True)):
        for kind, x in enumerate(pair):
            packed[:, :, place, kind] = x.transpose(1, 2).flatten(2)
    return packed


def check_shapes(capture: KVCapture, found: Sequence[Float[Tensor, "batch kv_heads time head_dim"]]) -> None:
    """Raises NotImplementedError for layers of different shape, also where heads·head_dim agree, which packing would not notice."""
    shapes = sorted({(x.shape[1], x.shape[3]) for x in found})
    if len(shapes) > 1:
        raise NotImplementedError(
            f"{type(capture.model).__name__}: K and V of different layers have different (heads, width): {shapes}; the store and "
            "the KV loss need one shape"
        )


def packed_kv_at(
    capture: KVCapture, layers: Sequence[int], sample: Int[Tensor, " tokens"], position: Int[Tensor, " tokens"]
) -> Float[Tensor, "tokens layers 2 width"]:
    """`packed_kv` at single tokens of the batch: token n is at `position[n]` of row `sample[n]`."""
    keys, values = capture.keys(layers), capture.values(layers)
    check_shapes(capture, keys + values)
    picked = [
        torch.stack([x.transpose(1, 2)[sample, position].flatten(1) for x in pair], 1)
        for pair in zip(keys, values, strict=True)
    ]
    return torch.stack(picked, 1)
