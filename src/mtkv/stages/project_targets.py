"""The mapped tier: what training reads of one teacher under one map, made once (method.md §2–§5).

In: the teacher's raw store, its map and the rows. Out: a store in the student's space and time, centred and scaled. It is smaller than the
raw one, which has every token at the teacher's own width, and a training step needs no matrix product.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mtkv.align.closed_form_maps import KVMap, combine_layers
from mtkv.align.token_alignment import TimeMatch, match_row
from mtkv.config.models import ModelConfig
from mtkv.data.rows import segment_ends
from mtkv.kv.shards import write_mapped
from mtkv.kv.store import KVStore, mapped_rows, write_index
from mtkv.models.load import load_tokenizer
from mtkv.models.tokenization import encode_rows
from mtkv.provenance.files import atomic_path

SHARD_ROWS = 2000


def write_targets(
    student: ModelConfig,
    store_folder: Path,
    map_path: Path,
    time: str,
    rows: Sequence[Path],
    dtype: str,
    output: Path,
) -> dict[str, Any]:
    """Stage function: the mapped tier of one teacher over `rows`, a folder of shards with their index. Returns rows, tokens, bytes."""
    store, fitted = KVStore(store_folder), KVMap.load(map_path)
    weights = fitted.layer_weights[:, store.layers]

    def target(kv: Tensor) -> Tensor:
        return fitted.target(combine_layers(kv, weights))

    frame = pd.concat([pd.read_parquet(path) for path in rows], ignore_index=True)
    with atomic_path(output) as temporary:
        temporary.mkdir(parents=True, exist_ok=True)
        shards: list[Path] = []
        for start in range(0, len(frame), SHARD_ROWS):
            shards.append(temporary / f"shard-{len(shards):04d}.safetensors")
            part = frame.iloc[start : start + SHARD_ROWS]
            with torch.no_grad():
                write_mapped(shards[-1], mapped_rows(store, row_matches(student, store, time, part), target), dtype)
        return write_index(shards, temporary / "index.parquet")


def row_matches(
    student: ModelConfig, store: KVStore, time: str, frame: pd.DataFrame
) -> Iterator[tuple[str, TimeMatch]]:
    """Id and match of every row."""
    encoded = encode_rows(load_tokenizer(student), list(frame["prompt"]), list(frame["target"]))
    for row, item, segments in zip(frame["id"], encoded, segment_ends(frame), strict=True):
        yield row, match_row(time, row, item, store, segments)
