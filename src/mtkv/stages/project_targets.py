"""The tiers mapped and components: what training reads of one teacher under one map, made once (method.md §2–§5).

In: the teacher's raw store, its map and the rows. Out: a store in the student's time, of the student's layers: in its space, centred and
scaled (mapped, for maps of closed form), or as principal components of the teacher's own channels (components, for any map). Both are
smaller than the raw one, which has every token and layer at the teacher's own width.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from mtkv.align.closed_form_maps import KVMap, combine_layers
from mtkv.align.components import Components
from mtkv.align.token_alignment import TimeMatch, match_row
from mtkv.config.models import ModelConfig
from mtkv.data.rows import segment_ends
from mtkv.kv.shards import write_mapped
from mtkv.kv.store import KVStore, mapped_rows, write_index
from mtkv.models.load import load_tokenizer
from mtkv.models.tokenization import encode_rows
from mtkv.provenance.files import atomic_path

SHARD_ROWS = 2000


class Storing(NamedTuple):
    """Tier (mapped or components), number format, and for components how many (None: the student's KV width)."""

    tier: str
    dtype: str
    width: int | None = None


def write_targets(
    student: ModelConfig,
    store_folder: Path,
    map_path: Path,
    time: str,
    rows: Sequence[Path],
    storing: Storing,
    output: Path,
) -> dict[str, Any]:
    """Stage function: the tier of one teacher over `rows`, a folder of shards with their index. Returns rows, tokens, bytes, chat date."""
    store, fitted = KVStore(store_folder), KVMap.load(map_path)
    weights = fitted.layer_weights[:, store.layers]
    frame = pd.concat([pd.read_parquet(path) for path in rows], ignore_index=True)
    components = None
    if storing.tier == "components":
        first = mapped_rows(
            store,
            row_matches(student, store, time, frame.head(SHARD_ROWS)),
            lambda kv: combine_layers(kv, weights),
        )
        components = Components.fit(
            torch.cat([kv for _, _, kv in first]), fitted, storing.width or fitted.y_mean.shape[-1]
        )

    def target(kv: Tensor) -> Tensor:
        combined = combine_layers(kv, weights)
        return components.encode(combined) if components else fitted.target(combined)

    with atomic_path(output) as temporary:
        temporary.mkdir(parents=True, exist_ok=True)
        if components:
            components.save(temporary)
        shards: list[Path] = []
        for start in range(0, len(frame), SHARD_ROWS):
            shards.append(temporary / f"shard-{len(shards):04d}.safetensors")
            part = frame.iloc[start : start + SHARD_ROWS]
            with torch.no_grad():
                write_mapped(
                    shards[-1], mapped_rows(store, row_matches(student, store, time, part), target), storing.dtype
                )
        return write_index(shards, temporary / "index.parquet") | {"chat_date": student.chat_date}


def row_matches(
    student: ModelConfig, store: KVStore, time: str, frame: pd.DataFrame
) -> Iterator[tuple[str, TimeMatch]]:
    """Id and match of every row."""
    encoded = encode_rows(load_tokenizer(student), list(frame["prompt"]), list(frame["target"]))
    for row, item, segments in zip(frame["id"], encoded, segment_ends(frame), strict=True):
        yield row, match_row(time, row, item, store, segments)
