"""Read rows through one frozen teacher and keep its KV: the stage `teachers`.

In: rows of text. Out: one shard of the store (see `mtkv.kv.store`). The teacher gets its own token ids; right padding, so that
positions count from the row's first token.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mtkv.kv.capture import KVCapture
from mtkv.kv.store import StoredRow, write_shard
from mtkv.models.encode import EncodedRow, encode_rows, pad_batch
from mtkv.models.load import DTYPES, load_model, load_tokenizer

if TYPE_CHECKING:
    from mtkv.config.models import ModelConfig


def extract_shard(
    teacher: "ModelConfig",
    layers: Sequence[int],
    rows: Sequence[Path],
    shard: int,
    shards: int,
    dtype: str,
    batch_size: int,
    output: Path,
) -> dict[str, Any]:
    """Stage function: write shard `shard` of `shards` for one teacher.

    Row i of all `rows` files taken together belongs to shard i·shards // rows. Returns the facts for the card.
    """
    tokenizer, model = load_tokenizer(teacher), load_model(teacher)
    frame = pd.concat([pd.read_parquet(path, columns=["id", "prompt", "target"]) for path in rows], ignore_index=True)
    frame = frame[np.arange(len(frame)) * shards // len(frame) == shard]
    encoded = encode_rows(tokenizer, list(frame["prompt"]), list(frame["target"]), context_length(model))
    stored = [
        StoredRow(row, kv.to(DTYPES[dtype]), item.byte_end)
        for row, item, kv in zip(frame["id"], encoded, read_kv(model, encoded, layers, batch_size), strict=True)
    ]
    write_shard(output, stored, layers)
    tokens = sum(len(row.input_ids) for row in encoded)
    return {"rows": len(stored), "tokens": tokens, "layers": list(layers), "bytes": output.stat().st_size}


def context_length(model: PreTrainedModel) -> int | None:
    """Positions the model was built for; None when its config states none."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


@torch.no_grad()
def read_kv(
    model: PreTrainedModel, rows: Sequence[EncodedRow], layers: Sequence[int], batch_size: int
) -> Iterator[Float[Tensor, "time layers 2 width"]]:
    """K before RoPE and V of the given layers, row by row in order, on the CPU; padding is cut off.

    Rows go through the model in batches of similar length.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        input_ids = torch.from_numpy(pad_batch([rows[index].input_ids for index in batch], 0)).to(model.device)
        lengths = torch.tensor([len(rows[index].input_ids) for index in batch], device=model.device)
        mask = torch.arange(input_ids.shape[1], device=model.device) < lengths[:, None]
        with KVCapture(model) as capture:
            model.base_model(input_ids=input_ids, attention_mask=mask.long(), use_cache=False)
            kv = packed_kv(capture, layers).cpu()
        found.update({index: kv[i, : lengths[i]] for i, index in enumerate(batch)})
    for index in range(len(rows)):
        yield found.pop(index)


def packed_kv(capture: KVCapture, layers: Sequence[int]) -> Float[Tensor, "batch time layers 2 width"]:
    """Heads flattened, layers and K/V stacked: the layout of the store."""
    keys, values = capture.keys(), capture.values()
    pairs = [torch.stack([_flat(keys[layer]), _flat(values[layer])], dim=2) for layer in layers]
    return torch.stack(pairs, dim=2)


def _flat(x: Float[Tensor, "batch kv_heads time head_dim"]) -> Float[Tensor, "batch time width"]:
    return x.transpose(1, 2).flatten(2)
