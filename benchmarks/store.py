"""What a KV store costs on disk, and what its number format does to the gradient.

python benchmarks/store.py

Bytes: shards of random numbers in the shapes of Qwen2.5-14B → 1.5B, per teacher token, against fp16 K and V of all 48 layers. The
two share a tokenizer, so every token but the first and the closing eos is synchronised. Gradient: cosine with the float32 raw tier, for
the mean squared KV loss of the pocket student on every one of its weights; real keys and values, teacher `qwen2`.
`int4` and `int6` are no formats of the store: they are rounded here to see what they would cost.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mtkv.align.layers import layer_map
from mtkv.align.maps import KVMap, fit_map
from mtkv.align.tokens import synchronised_tokens
from mtkv.config.data import POCKET_DATASETS, DataConfig
from mtkv.config.models import ModelConfig
from mtkv.data.build import draw_frames
from mtkv.kv.capture import KVCapture
from mtkv.kv.extract import packed_kv, read_kv
from mtkv.kv.quantize import LARGEST_CODE, channel_scale, dequantize, quantize
from mtkv.kv.store import StoredRow, write_mapped, write_shard
from mtkv.models.encode import encode_rows, pad_batch
from mtkv.models.load import load_model, load_tokenizer, model_layers

TEACHER, STUDENT = (48, 8 * 128), (28, 2 * 128)  # layers, kv_heads·head_dim
ROW_TOKENS, ROWS, SHARD_ROWS = 256, 8, 1000
FORMATS = ("float16", "bfloat16", "float8_e4m3fn", "int8")
ROUNDED_BITS = {"int6": 6, "int4": 4}
GOAL = 1 / 16
Spoil = Callable[[Tensor], Tensor]


def stored_bytes(tier: str, layers: int, dtype: str) -> float:
    """Bytes of a shard per teacher token; the scale is spread over SHARD_ROWS rows. `index.parquet` is left out (< 1 byte)."""
    width = TEACHER[1] if tier == "raw" else STUDENT[1]
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "shard-0000.safetensors"
        if tier == "raw":
            places = np.arange(ROW_TOKENS, dtype=np.int32)
            kvs = [torch.randn(ROW_TOKENS, layers, 2, width) for _ in range(ROWS)]
            rows = [StoredRow(f"row-{i}", kv, places, places) for i, kv in enumerate(kvs)]
            write_shard(shard, rows, range(layers), dtype)
        else:
            supervised = np.arange(1, ROW_TOKENS - 1)
            kvs = [torch.randn(len(supervised), layers, 2, width) for _ in range(ROWS)]
            write_mapped(shard, [(f"row-{i}", supervised, kv) for i, kv in enumerate(kvs)], dtype)
        scale = layers * 2 * width * 4 if dtype in LARGEST_CODE else 0
        return (shard.stat().st_size - scale) / (ROWS * ROW_TOKENS) + scale / (SHARD_ROWS * ROW_TOKENS)


def print_bytes() -> None:
    all_layers = TEACHER[0] * 2 * TEACHER[1] * 2
    print(f"bytes per teacher token; fp16 K and V of all {TEACHER[0]} layers: {all_layers}")
    for tier, layers, dtype in (
        ("raw", STUDENT[0], "float16"),
        ("raw", STUDENT[0], "int8"),
        ("mapped", STUDENT[0], "float16"),
        ("mapped", STUDENT[0], "int8"),
        ("mapped", 24, "int8"),
    ):
        size = stored_bytes(tier, layers, dtype)
        reached = "reaches 1/16" if size <= GOAL * all_layers else "does not reach 1/16"
        print(f"  {tier:6} {dtype:8} {layers} layers: {size:8.0f} = 1/{all_layers / size:.2f}  {reached}")
    whole = stored_bytes("mapped", STUDENT[0], "int8") * ROW_TOKENS / (ROW_TOKENS - 2)
    print(
        f"  mapped int8 {STUDENT[0]} layers reaches 1/16 when at most {GOAL * all_layers / whole:.1%} of the tokens are supervised"
    )
    for name, bits in ROUNDED_BITS.items():
        size = (STUDENT[0] * 2 * STUDENT[1] * bits / 8 + 4) * (1 - 2 / ROW_TOKENS)
        print(f"  mapped {name} {STUDENT[0]} layers would be {size:.0f} = 1/{all_layers / size:.2f}")


def rounded(bits: int, clip: float) -> Spoil:
    """Symmetric rounding per channel to `bits`, at `clip` standard deviations of the channel."""

    def spoil(x: Tensor) -> Tensor:
        largest = 2 ** (bits - 1) - 1
        scale = x.square().mean(0).sqrt().clamp_min(1e-12) * clip / largest
        return (x / scale).round().clamp(-largest, largest) * scale

    return spoil


def stored_as(dtype: str) -> Spoil:
    """Through the store's own format and back."""

    def spoil(x: Tensor) -> Tensor:
        scale = channel_scale([x], dtype)
        return dequantize(quantize(x, scale, dtype), scale).float()

    return spoil


def with_key_bias(dtype: str, size: float) -> Spoil:
    """Raw KV whose key channels sit `size` standard deviations away from zero, as biases of k_proj make them."""

    def spoil(x: Tensor) -> Tensor:
        bias = size * x.std(0)
        bias[:, 1] = 0
        return stored_as(dtype)(x + bias) - bias

    return spoil


class Pair:
    """Pocket student and teacher `qwen2` on the same rows: what a KV loss needs."""

    def __init__(self) -> None:
        student, teacher = ModelConfig(name="student"), ModelConfig(name="qwen2")
        self.layers = layer_map("ratio", model_layers(teacher), model_layers(student))
        frames, _ = draw_frames(
            DataConfig(train_rows=64, validation_rows=1, calibration_rows=160, test_items=1), list(POCKET_DATASETS)
        )
        self.student, self.models = load_model(student), {"student": student, "teacher": teacher}
        *calibration, _, _ = self.read(frames["calibration"])
        self.map: KVMap = fit_map(*calibration, self.layers, "ridge", 1e-3)
        self.teacher_kv, _, self.encoded, self.place = self.read(frames["train"])

    def read(self, frame):
        """Teacher and student KV at the synchronised tokens, the student's rows, and the (row, position) of each token."""
        encoded, kvs = {}, {}
        for name, config in self.models.items():
            model, tokenizer = load_model(config), load_tokenizer(config)
            encoded[name] = encode_rows(tokenizer, list(frame["prompt"]), list(frame["target"]), None)
            layers = self.layers if name == "teacher" else range(len(self.layers))
            kvs[name] = list(read_kv(model, encoded[name], layers, 32))
        ours, theirs, place = [], [], []
        for row, (mine, other) in enumerate(zip(encoded["student"], encoded["teacher"], strict=True)):
            matched = synchronised_tokens(mine.byte_end, other.byte_end)
            position = np.flatnonzero(matched >= 0)
            ours.append(kvs["student"][row][position])
            theirs.append(kvs["teacher"][row][matched[position]])
            place += [(row, int(p)) for p in position]
        self.coverage = len(place) / sum(len(row.input_ids) for row in encoded["teacher"])
        return torch.cat(theirs), torch.cat(ours), encoded["student"], torch.tensor(place)

    def gradient(self, target: Tensor, layers: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Of the mean squared KV loss on the student's layers `layers`: on all its weights, and on its KV."""
        self.student.zero_grad()
        input_ids = torch.from_numpy(pad_batch([row.input_ids for row in self.encoded], 0))
        with KVCapture(self.student) as capture:
            self.student.base_model(input_ids=input_ids, use_cache=False)
            kv = packed_kv(capture, range(len(self.layers)))[self.place[:, 0], self.place[:, 1]]
        kv.retain_grad()
        F.mse_loss(((kv - self.map.y_mean) / self.map.scale[..., None])[:, layers], target[:, layers]).backward()
        weights = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.student.parameters()]
        return torch.cat([grad.flatten() for grad in weights]), kv.grad.flatten()


def print_gradients() -> None:
    pair = Pair()
    raw, target = pair.teacher_kv, pair.map.target(pair.teacher_kv)
    reference = pair.gradient(target)

    def line(name: str, spoiled: Tensor, layers: slice = slice(None)) -> None:
        found = (*pair.gradient(spoiled, layers), spoiled.flatten())
        cosines = [
            F.cosine_similarity(x.double(), y.double(), 0)
            for x, y in zip(found, (*reference, target.flatten()), strict=True)
        ]
        print(f"  {name:36}" + "".join(f"{cosine:11.6f}" for cosine in cosines))

    print(
        f"\ncosine with the float32 raw tier; {len(raw)} tokens, {pair.coverage:.0%} of the teacher's are synchronised"
    )
    print(f"  {'':36}{'d weights':>11}{'d KV':>11}{'target':>11}")
    for dtype in FORMATS:
        line(f"raw {dtype}", pair.map.target(stored_as(dtype)(raw)))
    for size in (10, 100):
        line(f"raw int8, key bias of {size} std", pair.map.target(with_key_bias("int8", size)(raw)))
    for dtype in FORMATS:
        line(f"mapped {dtype}", stored_as(dtype)(target))
    for name, bits in ROUNDED_BITS.items():
        for clip in (2.5, 3.0, 4.0):
            line(f"mapped {name}, clipped at {clip} std", rounded(bits, clip)(target))
    line(f"mapped int8, without layer 1 of {len(pair.layers)}", stored_as("int8")(target), slice(1, None))


if __name__ == "__main__":
    print_bytes()
    print_gradients()
