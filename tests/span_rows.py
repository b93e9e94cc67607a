"""Rows of text cut into tokens at random, teachers' random KV of them in a store, and alignment by counting bytes one by one."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from mtkv.kv.shards import StoredRow, write_shard
from mtkv.kv.store import KVStore, write_index
from mtkv.models.tokenization import EncodedRow

SIZE = 60  # bytes of a row
SEGMENTS = (23, 47)
# name: comparable tokens of the student and of the teacher; None: the student's very tokens
SHAPES = {"coarse": (24, 9), "same": (17, None), "fine": (8, 37), "nothing": (12, 0), "near": (21, 19)}
NO_SPAN = (-1, -1)


def cut(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """`count` spans that cover a row, with tokens that have none before, behind and between them."""
    inner = sorted(rng.choice(np.arange(1, SIZE), count - 1, replace=False).tolist()) if count else []
    edges = [0, *inner, SIZE]
    spans = list(pairwise(edges)) if count else []
    for place in sorted(rng.integers(0, len(spans) + 1, 3).tolist(), reverse=True):
        spans.insert(place, NO_SPAN)
    return [NO_SPAN, *spans, NO_SPAN]


def encoded(spans: list[tuple[int, int]]) -> EncodedRow:
    start, end = (np.array(side, dtype=np.int32) for side in zip(*spans, strict=True))
    return EncodedRow(np.arange(len(spans)), start, end, end > SEGMENTS[0])


def build(seed: int = 0) -> tuple[dict[str, list], dict[str, list]]:
    """Spans of student and of teacher, by name of the row."""
    rng = np.random.default_rng(seed)
    student = {name: cut(rng, count) for name, (count, _) in SHAPES.items()}
    teacher = {name: student[name] if count is None else cut(rng, count) for name, (_, count) in SHAPES.items()}
    return student, teacher


def stored(folder: Path, spans: dict[str, list], layers: list[int], width: int, dtype: str = "float32", seed: int = 0):
    """A store in two shards, and what was stored: KV `[time, layers, 2, width]` and importance `[time, layers, 2]` of every row."""
    generator = torch.Generator().manual_seed(seed)
    kv = {name: torch.randn(len(row), len(layers), 2, width, generator=generator) + 0.3 for name, row in spans.items()}
    importance = {name: torch.rand(len(row), len(layers), 2, generator=generator).half() for name, row in spans.items()}
    rows = []
    for number, (name, row) in enumerate(spans.items()):
        start, end = (np.array(side, dtype=np.int32) for side in zip(*row, strict=True))
        rows.append(StoredRow(name, kv[name], end, start, {"likelihood": -0.5 - number}, importance[name]))
    shards = [folder / f"shard-{number:04d}.safetensors" for number in range(2)]
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards):
        write_shard(shard, rows[number::2], layers, dtype)
    write_index(shards, folder / "index.parquet")
    exact = {name: x.to(getattr(torch, dtype)).double().numpy() for name, x in kv.items()}
    return (
        KVStore(folder, statistics=("likelihood",)),
        exact,
        {name: x.double().numpy() for name, x in importance.items()},
    )


def matrix(method: str, student: list, teacher: list, segments: tuple[int, ...] = SEGMENTS) -> np.ndarray:
    """Weight of every teacher token for every student token `[student_time, teacher_time]`; a row of zeros: no target."""
    weight = np.array([[float(x) for x in row] for row in RAW[method](student, teacher, segments)])
    weight = weight.reshape(len(student), len(teacher))
    total = weight.sum(1, keepdims=True)
    return np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)


def _of_bytes(value):
    def raw(student, teacher, segments):
        bytes_of = [[set(range(*span)) if span != NO_SPAN else set() for span in side] for side in (student, teacher)]
        return [[value(mine, theirs) if mine and theirs else 0 for theirs in bytes_of[1]] for mine in bytes_of[0]]

    return raw


def _sync(student, teacher, segments):
    return [[mine != NO_SPAN and mine[1] == theirs[1] for theirs in teacher] for mine in student]


def _truncate(student, teacher, segments):
    mine, theirs = ([i for i, span in enumerate(side) if span != NO_SPAN] for side in (student, teacher))
    pairs = set(zip(mine, theirs, strict=False))
    return [[(i, j) in pairs for j in range(len(teacher))] for i in range(len(student))]


def _resample(student, teacher, segments):
    weight = [[Fraction(0)] * len(teacher) for _ in student]
    for number in range(len(segments) + 1):
        mine, theirs = (
            [i for i, span in enumerate(side) if span != NO_SPAN and sum(span[1] > end for end in segments) == number]
            for side in (student, teacher)
        )
        for rank, i in enumerate(mine if theirs else []):
            place = Fraction(rank * (len(theirs) - 1), len(mine) - 1) if len(mine) > 1 else Fraction(len(theirs) - 1)
            for j, token in enumerate(theirs):
                weight[i][token] = max(Fraction(0), 1 - abs(place - j))
    return weight


RAW = {
    "sync": _sync,
    "truncate": _truncate,
    "overlap": _of_bytes(lambda mine, theirs: len(mine & theirs)),
    "iou": _of_bytes(lambda mine, theirs: Fraction(len(mine & theirs), len(mine | theirs))),
    "resample": _resample,
}
