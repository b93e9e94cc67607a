"""How many texts are read at once: as many as asked for, fewer where memory does not hold them, half of that when it runs out.

A text that does not fit into the model's context is never cut (`check_room` refuses it).
"""

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from mtkv.evaluate.lm_eval_tasks import UnanswerableError
from mtkv.models.device_placement import layer_configs, layer_kv_shape


def check_room(context: int, longest: int, new: int = 0) -> None:
    """Raises UnanswerableError when a text of `longest` tokens and `new` more are longer than the context."""
    if longest + new > context:
        raise UnanswerableError(
            f"the longest text has {longest} tokens; with {new} new ones that is more than the model's "
            f"context of {context}: lower evaluation.max_new_tokens or evaluation.num_fewshot"
        )


Item = TypeVar("Item")
SHARE = 0.7  # of the free memory, for what is not counted below
BUSY = {"cpu": 512}  # tokens from which on reading more at once is no faster a token
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int | None:
    """Memory that may still be taken on the device; None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text(encoding="ascii").splitlines() if meminfo.is_file() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        found.append(int(limit.read_text()) - int(used.read_text()))
    return min(found) if found else None


def row_bytes(model: Any, length: int, scored: int) -> int:
    """Memory that one more text of `length` tokens takes: its KV twice (it is copied as it grows), one layer's activations, its mask
    and `scored` rows of logits, as they come and twice in float32."""
    settings, size = model.config.get_text_config(), model.dtype.itemsize
    layers = layer_configs(settings)
    kv = 2 * sum(prod(layer_kv_shape(layer)) for layer in layers) * size
    inner = max(getattr(layer, "intermediate_size", None) or 4 * settings.hidden_size for layer in layers)
    activations = (6 * settings.hidden_size + 3 * inner) * size
    return length * (2 * kv + activations + length * size) + scored * settings.vocab_size * (size + 8)


def rows_to_read(model: Any, wanted: int, length: int, scored: int) -> int:
    """`rows_at_once` for texts that are read in one go: no more than keep the processor busy, since more would only be padded more."""
    busy = BUSY.get(model.device.type, wanted * length)
    return min(rows_at_once(model, wanted, length, scored), max(1, busy // length))


def rows_at_once(model: Any, wanted: int, length: int, scored: int) -> int:
    """`wanted` texts, or as many as fit into the free memory; at least one."""
    free = free_bytes(model.device)
    return wanted if free is None else max(1, min(wanted, int(SHARE * free / row_bytes(model, length, scored))))


def in_batches(items: Sequence[Item], rows: int, work: Callable[[Sequence[Item]], None]) -> None:
    """`work` on the items, `rows` at a time; from there on half as many at a time whenever memory runs out.

    What was done stays done. Raises UnanswerableError when memory does not hold one item.
    """
    done = 0
    while done < len(items):
        try:
            work(items[done : done + rows])
            done += rows
        except RuntimeError as error:
            rows = halved(rows, error)


def halved(rows: int, error: RuntimeError) -> int:
    """Half as many rows. Raises `error` itself when it is not about memory, UnanswerableError when there was only one row."""
    if not should_reduce_batch_size(error):
        raise error
    if rows == 1:
        raise UnanswerableError(
            "memory does not hold a single question; lower evaluation.max_new_tokens or evaluation.num_fewshot, or use "
            f"a machine with more ({error})"
        ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return rows // 2
