"""What a KV store costs on disk, and what its number format does to the gradient.

python benchmarks/store.py

Bytes: shards of random numbers in the shapes of Qwen2.5-14B → 1.5B, per teacher token, against fp16 K and V of all 48 layers. The
two share a tokenizer, so every token but the first and the closing eos is synchronised. Gradient: cosine with the float32 raw tier, for
the mean squared KV loss of the pocket student on every one of its weights and on its KV; real keys and values of each pocket teacher,
written to a store and read from it. Components: the same for the default loss, smooth L1 in each channel's unit between the teacher's own
channels and a linear map of the student's (least squares on calibration rows, as training soon has it).
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from mtkv.align.byte_spans import synchronised_tokens
from mtkv.align.closed_form_maps import KVMap, fit_map
from mtkv.align.components import Components
from mtkv.align.layers import layer_map
from mtkv.config.data import POCKET_DATASETS, DataConfig
from mtkv.config.models import ModelConfig
from mtkv.data.build import draw_frames
from mtkv.kv.capture import KVCapture
from mtkv.kv.extract import packed_kv, read_kv
from mtkv.kv.shards import LARGEST_CODE, StoredRow, write_mapped, write_shard
from mtkv.kv.store import MappedStore, write_index
from mtkv.models.load import load_model, load_tokenizer, model_layers
from mtkv.models.tokenization import EncodedRow, encode_rows, pad_batch

TEACHER, STUDENT = (48, 8 * 128), (28, 2 * 128)  # layers, kv_heads·head_dim
POCKET_TEACHERS = ("qwen2", "gpt2")
ROW_TOKENS, ROWS, SHARD_ROWS = 256, 8, 1000
FORMATS = ("float16", "bfloat16", "float8_e4m3fn", "int8", "int4")
GOAL_BYTES, GOAL_COSINE = 1 / 16, 0.99
Spoil = Callable[[Tensor], Tensor]


def stored_bytes(tier: str, layers: int, dtype: str) -> float:
    """Bytes of a shard per teacher token; the grid is spread over SHARD_ROWS rows. `index.parquet` is left out (< 1 byte)."""
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
        grid = layers * 2 * width * 8 if dtype in LARGEST_CODE else 0
        return (shard.stat().st_size - grid) / (ROWS * ROW_TOKENS) + grid / (SHARD_ROWS * ROW_TOKENS)


def print_bytes() -> None:
    all_layers = TEACHER[0] * 2 * TEACHER[1] * 2
    print(f"bytes per teacher token; fp16 K and V of all {TEACHER[0]} layers: {all_layers}")
    for tier, layers, dtype in (
        ("raw", STUDENT[0], "float16"),
        ("raw", STUDENT[0], "int8"),
        ("raw", STUDENT[0], "int4"),
        ("mapped", STUDENT[0], "float16"),
        ("mapped", STUDENT[0], "int8"),
        ("mapped", 24, "int8"),
        ("mapped", STUDENT[0], "int4"),
    ):
        size = stored_bytes(tier, layers, dtype)
        reached = "reaches 1/16" if size <= GOAL_BYTES * all_layers else "does not reach 1/16"
        print(f"  {tier:6} {dtype:8} {layers} layers: {size:8.0f} = 1/{all_layers / size:.2f}  {reached}")


def stored_as(dtype: str) -> Spoil:
    """Written to a store of one shard and read from it."""

    def spoil(x: Tensor) -> Tensor:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            shard = folder / "shard-0000.safetensors"
            write_mapped(shard, [("row", np.arange(len(x)), x)], dtype)
            write_index([shard], folder / "index.parquet")
            return MappedStore(folder).read("row").float()

    return spoil


def with_key_bias(dtype: str, size: float) -> Spoil:
    """Raw KV whose key channels sit `size` standard deviations away from zero, as biases of k_proj make them."""

    def spoil(x: Tensor) -> Tensor:
        bias = size * x.std(0)
        bias[:, 1] = 0
        return stored_as(dtype)(x + bias) - bias

    return spoil


class Pair:
    """Pocket student and one teacher on the same rows: what a KV loss needs."""

    def __init__(self, name: str) -> None:
        student, teacher = ModelConfig(name="student"), ModelConfig(name=name)
        self.layers = layer_map("ratio", model_layers(teacher), model_layers(student))
        frames, _ = draw_frames(
            DataConfig(train_rows=64, validation_rows=1, calibration_rows=160, test_items=1), list(POCKET_DATASETS)
        )
        self.student, self.models = load_model(student), {"student": student, "teacher": teacher}
        *self.calibration, _, _ = self.read(frames["calibration"])
        self.map: KVMap = fit_map(*self.calibration, self.layers, "ridge", 1e-3)
        self.teacher_kv, _, self.encoded, self.place = self.read(frames["train"])

    def read(self, frame: pd.DataFrame) -> tuple[Tensor, Tensor, list[EncodedRow], Tensor]:
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

        def loss(kv: Tensor) -> Tensor:
            return F.mse_loss(((kv - self.map.y_mean) / self.map.scale[..., None])[:, layers], target[:, layers])

        return self.gradient_of(loss)

    def student_side(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """The same of smooth L1 in each channel's unit between `target`, teacher KV, and a linear map of the student's."""
        x, y = self.calibration
        ones = torch.ones(len(y), y.shape[1], 2, 1)
        solved = torch.linalg.lstsq(torch.cat([y, ones], -1).permute(1, 2, 0, 3), x.permute(1, 2, 0, 3)).solution

        def loss(kv: Tensor) -> Tensor:
            said = torch.einsum("nlks,lkst->nlkt", torch.cat([kv, torch.ones(*kv.shape[:-1], 1)], -1), solved)
            return F.smooth_l1_loss(said / x.std(0), target / x.std(0))

        return self.gradient_of(loss)

    def gradient_of(self, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Of a loss of the student's KV at the matched tokens: on all its weights, and on its KV."""
        self.student.zero_grad()
        input_ids = torch.from_numpy(pad_batch([row.input_ids for row in self.encoded], 0))
        with KVCapture(self.student) as capture:
            self.student.base_model(input_ids=input_ids, use_cache=False)
            kv = packed_kv(capture, range(len(self.layers)))[self.place[:, 0], self.place[:, 1]]
        kv.retain_grad()
        loss(kv).backward()
        weights = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.student.parameters()]
        return torch.cat([grad.flatten() for grad in weights]), kv.grad.flatten()


def spoiled_targets(pair: Pair) -> Iterator[tuple[str, Tensor, slice]]:
    """Name, the target as training would read it, and the student's layers that are distilled."""
    raw, target, every = pair.teacher_kv, pair.map.target, slice(None)
    for dtype in FORMATS:
        yield f"raw {dtype}", target(stored_as(dtype)(raw)), every
    for dtype in ("int8", "int4"):
        yield f"raw {dtype}, key bias of 100 std", target(with_key_bias(dtype, 100)(raw)), every
    for dtype in FORMATS:
        yield f"mapped {dtype}", stored_as(dtype)(target(raw)), every
    for first in ("int8", "int4"):
        yield f"mapped int4 of raw {first}", stored_as("int4")(target(stored_as(first)(raw))), every
    yield f"mapped int8, without layer 1 of {len(pair.layers)}", stored_as("int8")(target(raw)), slice(1, None)


def print_gradients(teacher: str) -> None:
    pair = Pair(teacher)
    exact = pair.map.target(pair.teacher_kv)
    reference = (*pair.gradient(exact), exact.flatten())
    print(
        f"\n{teacher} → student: cosine with the float32 raw tier;"
        f" {len(exact)} tokens, {pair.coverage:.0%} of the teacher's are synchronised"
    )
    print(f"  {'':36}{'d weights':>11}{'d KV':>11}{'target':>11}")
    for name, spoiled, layers in spoiled_targets(pair):
        found = (*pair.gradient(spoiled, layers), spoiled.flatten())
        cosines = [float(F.cosine_similarity(x.double(), y.double(), 0)) for x, y in zip(found, reference, strict=True)]
        reached = "reaches" if cosines[0] >= GOAL_COSINE else "does not reach"
        print(f"  {name:36}" + "".join(f"{cosine:11.6f}" for cosine in cosines) + f"  {reached} {GOAL_COSINE}")


def print_components(teacher: str) -> None:
    pair = Pair(teacher)
    own, width = pair.teacher_kv.shape[-1], pair.calibration[1].shape[-1]
    exact = pair.student_side(pair.teacher_kv)
    print(f"\n{teacher} → student, student-side map: components of {own} channels; the student has {width}")
    everything = Components.fit(pair.calibration[0], pair.map, own).encode(pair.teacher_kv).square().sum()
    for count in sorted({width // 2, width, own // 2, own}):
        parts = Components.fit(pair.calibration[0], pair.map, count)
        coordinates = parts.encode(pair.teacher_kv)
        kept = float(coordinates.square().sum() / everything)
        for dtype in ("float32", "int8", "int4"):
            read = parts.decode(coordinates if dtype == "float32" else stored_as(dtype)(coordinates))
            found = pair.student_side(read)
            cosines = [float(F.cosine_similarity(x.double(), y.double(), 0)) for x, y in zip(found, exact, strict=True)]
            print(f"  {count:4} components, {dtype:8} variance {kept:.3f}" + "".join(f"{c:11.6f}" for c in cosines))


if __name__ == "__main__":
    print_bytes()
    for teacher in POCKET_TEACHERS:
        print_gradients(teacher)
        print_components(teacher)
