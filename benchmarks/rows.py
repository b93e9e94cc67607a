"""What the rows of a training take in memory: as frames and lists, and streamed from disk (`resources.train.stream`).

python benchmarks/rows.py [rows ...]

Pocket student, synthetic sums of about 90 tokens, alone and with two teachers of one KV channel, so that stores are small. Everything
that `train_arm` does with rows, up to the order of the first pass, in a process of its own each. The peak is the growth of `VmHWM` over
what the process took before; in it are pages of memory-mapped stores, which the kernel drops when memory is short and which are not in
the process's own memory (`RssAnon`, at the end).
"""

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from mtkv.config.models import ModelConfig
from mtkv.data.rows import RowFile, check_files, check_rows
from mtkv.distill.dataset import DistillationRows
from mtkv.distill.teacher_kv import TeacherKV
from mtkv.kv.shards import StoredRow, write_shard
from mtkv.kv.store import KVStore, write_index
from mtkv.models.load import load_tokenizer
from mtkv.models.tokenization import encode_rows
from mtkv.training.data_parallel import DeterministicSampler

ROWS = (10_000, 100_000)
SHARD_ROWS = 5000
TEACHERS = ("qwen2", "gpt2")


def synthetic(first: int, count: int) -> pd.DataFrame:
    """Rows with the columns that a study's have, every one a text of its own."""
    numbers = np.random.default_rng(first).integers(1, 90, (count, 3)).tolist()
    prompts = [
        f"Question: Tom has {a} apples, buys {b} and eats {c}. How many are left?\nReason:" for a, b, c in numbers
    ]
    reasons = [f" {a} and {b} are {a + b}, less {c} is {a + b - c}." for a, b, c in numbers]
    answers = [str(a + b - c) for a, b, c in numbers]
    targets = [f"{reason}\nAnswer: {answer}" for reason, answer in zip(reasons, answers, strict=True)]
    return pd.DataFrame(
        {
            "id": [f"sums-{first + i:08d}-cot" for i in range(count)],
            "dataset": "sums",
            "style": "cot",
            "question": [prompt[10:-8] for prompt in prompts],
            "reasoning": reasons,
            "answer": answers,
            "prompt": prompts,
            "target": targets,
            "prompt_end": [len(prompt) for prompt in prompts],
            "reasoning_end": [len(prompt + reason) for prompt, reason in zip(prompts, reasons, strict=True)],
        }
    )


def make(folder: Path, rows: int) -> None:
    """`rows.parquet` and a store of each teacher."""
    parts = [synthetic(first, min(SHARD_ROWS, rows - first)) for first in range(0, rows, SHARD_ROWS)]
    pd.concat(parts).to_parquet(folder / "rows.parquet")
    for teacher in TEACHERS:
        (folder / teacher).mkdir()
        shards = [folder / teacher / f"shard-{i:04d}.safetensors" for i in range(len(parts))]
        for part, shard in zip(parts, shards, strict=True):
            write_shard(shard, list(_stored(part, teacher)), [0], "float16")
        write_index(shards, folder / teacher / "index.parquet")


def _stored(rows: pd.DataFrame, teacher: str) -> Iterator[StoredRow]:
    encoded = encode_rows(tokenizer_of(teacher), list(rows["prompt"]), list(rows["target"]))
    for row, item in zip(rows["id"], encoded, strict=True):
        yield StoredRow(row, torch.zeros(len(item.input_ids), 1, 2, 1), item.byte_end, item.byte_start)


def tokenizer_of(model: str) -> PreTrainedTokenizerBase:
    """A pocket model's."""
    return load_tokenizer(ModelConfig(source="pocket", name=model))


def status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def measure(folder: Path, way: str, arm: str) -> None:
    """Print growth of peak memory and of the process's own memory at the end, seconds and tokens."""
    tokenizer = tokenizer_of("student")
    encode_rows(tokenizer, ["Question"], [" 1"])
    before, anonymous, started = status("VmRSS"), status("RssAnon"), time.perf_counter()
    path = folder / "rows.parquet"
    sources = [TeacherKV(KVStore(folder / name), torch.eye(1)) for name in (TEACHERS if arm != "sft" else ())]
    if way == "disk":
        given: RowFile | pd.DataFrame = RowFile(path)
        check_files([given], "rows")
    else:
        given = pd.read_parquet(path)
        check_rows(given, "rows")
    rows = DistillationRows(tokenizer, given, sources, arm, 0, None)
    order = iter(DeterministicSampler(rows.lengths, 32, 0, lambda: 0))
    rows.collate([next(order) for _ in range(8)])
    own = status("RssAnon") - anonymous
    print(status("VmHWM") - before, own, time.perf_counter() - started, sum(rows.lengths))


def main(counts: list[int]) -> None:
    """All ways and sizes; the difference between sizes is what a row takes."""
    with tempfile.TemporaryDirectory(dir=".") as root:
        for count in counts:
            folder = Path(root) / str(count)
            folder.mkdir()
            run("make", str(folder), str(count))
        for arm, way in itertools.product(("sft", "shuffle_items"), ("memory", "disk")):
            found = []
            for count in counts:
                measured = run("measure", str(Path(root) / str(count)), way, arm)
                peak, own, seconds, tokens = (float(value) for value in measured.split())
                megabytes = f"peak {peak / 1e6:.0f} MB, own {own / 1e6:.0f} MB"
                print(
                    f"{arm} {way}: {count} rows of {tokens / count:.0f} tokens, {megabytes}, {seconds:.0f} s",
                    flush=True,
                )
                found.append(np.array([peak, own]))
            grown = (found[-1] - found[0]) / max(1, counts[-1] - counts[0])
            print(f"{arm} {way}: peak {grown[0]:.0f}, own {grown[1]:.0f} bytes a row", flush=True)


def run(*arguments: str) -> str:
    """This script in a process of its own."""
    return subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["measure"]:
        measure(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        main([int(count) for count in sys.argv[1:]] or list(ROWS))
