"""What KV distillation costs, as ratios of medians in one run, on random weights of a real student's shape.

python benchmarks/steps.py [--size pocket|smollm2|1b] [--device cpu|cuda] [--steps 5]

- capture: a forward that records K and V, selects tokens and packs them for the store ÷ the plain forward;
- step: a training step with stored teachers (one, two) ÷ the SFT step, forward, backward and optimizer, with reading from disk;
- memory: peak of the KV step ÷ peak of the SFT step (each in a process of its own).

Rounds of all variants alternate, so that a slow minute of the machine hits all alike.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
import typer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from mtkv.align.closed_form_maps import fit_map
from mtkv.config.kv import KVConfig
from mtkv.config.models import ModelConfig
from mtkv.distill.dataset import DistillationRows
from mtkv.distill.distiller import Distiller
from mtkv.distill.kv_objective import KVObjective
from mtkv.distill.teacher_kv import ProjectedTeacherKV, TeacherKV
from mtkv.kv.extract import read_rows
from mtkv.kv.select import select_tokens
from mtkv.kv.shards import KEY, StoredRow, write_mapped, write_shard
from mtkv.kv.store import KVStore, MappedStore, mapped_rows, write_index
from mtkv.models.load import load_tokenizer
from mtkv.models.tokenization import EncodedRow


class Size(NamedTuple):
    """The shape of a llama."""

    hidden: int
    middle: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


SIZES = {
    "pocket": Size(64, 160, 3, 4, 2, 16, 768),
    "smollm2": Size(576, 1536, 30, 9, 3, 64, 49152),
    "1b": Size(2048, 8192, 16, 32, 8, 64, 128256),
}
TEACHER_WIDTHS = (256, 512)  # KV channels of a Qwen2.5-1.5B and of a 7B
ROWS, TOKENS = 8, 192
VARIANTS = {"sft": 0, "kv of one teacher": 1, "kv of two teachers": 2}


def build_student(size: str, device: str) -> torch.nn.Module:
    shape = SIZES[size]
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.middle,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return AutoModelForCausalLM.from_config(config).to(device, dtype)


def text_rows(tokenizer: PreTrainedTokenizerFast) -> pd.DataFrame:
    """Rows of `TOKENS` pocket-student tokens, two thirds of them target."""
    rng = np.random.default_rng(0)
    words = ["Tom", " has", " 12", " apples", " and", " buys", " more", "\n", " 7", " how", " many", " total"]
    texts = []
    while len(texts) < ROWS:
        text = "".join(rng.choice(words, 2 * TOKENS))
        ends = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        texts.append((text[: ends[TOKENS // 3][0]], text[ends[TOKENS // 3][0] : ends[TOKENS - 2][1]]))
    prompts, targets = zip(*texts, strict=True)
    return pd.DataFrame({"id": [f"r{i}" for i in range(ROWS)], "dataset": "x", "prompt": prompts, "target": targets})


def build_variant(
    teachers: int, size: str, device: str, folder: Path, tier: str
) -> tuple[Callable[[], float], torch.nn.Module]:
    """One training step as a function, with everything it reads in `folder`."""
    tokenizer = load_tokenizer(ModelConfig(name="student"))
    rows = text_rows(tokenizer)
    student = build_student(size, device)
    layers, kv_heads = SIZES[size].layers, SIZES[size].kv_heads
    width = kv_heads * SIZES[size].head_dim
    sources, maps = [], []
    encoded = DistillationRows(tokenizer, rows, [], "none", 0, None).encoded
    generator = torch.Generator().manual_seed(1)
    for number in range(teachers):
        teacher_width = TEACHER_WIDTHS[number]
        store = folder / f"{size}-{teacher_width}"
        stored = [
            StoredRow(row, torch.randn(len(item.byte_end), layers, 2, teacher_width, generator=generator), *ends(item))
            for row, item in zip(rows["id"], encoded, strict=True)
        ]
        write_shard(store / "shard-0000.safetensors", stored, range(layers), "float16")
        write_index([store / "shard-0000.safetensors"], store / "index.parquet")
        x = torch.randn(teacher_width + 64, 1, 2, teacher_width, generator=generator).expand(-1, layers, -1, -1)
        y = torch.randn(teacher_width + 64, 1, 2, width, generator=generator).expand(-1, layers, -1, -1)
        maps.append(fit_map(x, y, list(range(layers)), "ridge", 1e-3))
        source = TeacherKV(KVStore(store), torch.eye(layers))
        if tier == "mapped":
            matches = [(row, source.match(row, item, None)) for row, item in zip(rows["id"], encoded, strict=True)]
            targets = folder / f"{size}-{teacher_width}-mapped"
            write_mapped(
                targets / "shard-0000.safetensors", mapped_rows(source.store, matches, maps[-1].target), "int8"
            )
            write_index([targets / "shard-0000.safetensors"], targets / "index.parquet")
            sources.append(ProjectedTeacherKV(MappedStore(targets)))
        else:
            sources.append(source)
    data = DistillationRows(tokenizer, rows, sources, "none", 0, None)
    supervision = None
    if teachers:
        config = KVConfig.model_validate({"teachers": [f"t{i}" for i in range(teachers)], "loss": {"gamma": 0}})
        supervision = KVObjective(config, maps, (kv_heads, [1] * teachers), mapped=tier == "mapped").to(device)
    distiller = Distiller(student, 1.0, supervision)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-5)

    def step() -> float:
        batch = on_device(data.collate(range(ROWS)), device)
        loss = distiller(**batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step, student


def ends(item: object) -> tuple[np.ndarray, np.ndarray]:
    return item.byte_end, item.byte_start  # type: ignore[attr-defined]


def on_device(batch: dict, device: str) -> dict:
    moved = {name: value.to(device) for name, value in batch.items() if hasattr(value, "to")}
    return batch | moved | {"teacher_kv": [kv.to(device) for kv in batch.get("teacher_kv", [])] or None}


def capture_ratio(size: str, device: str, steps: int) -> dict[str, float]:
    """The plain forward; with capture, packing and a shard written, as the stage `teachers` does it; with the attention that selectors
    need and the selection of half the tokens as well."""
    student = build_student(size, device).eval()
    layers = range(SIZES[size].layers)
    ids = np.random.default_rng(0).integers(0, SIZES[size].vocabulary, (ROWS, TOKENS))
    is_target = np.arange(TOKENS) >= TOKENS // 3
    ends = np.arange(TOKENS, dtype=np.int32)
    rows = [EncodedRow(row, ends - 1, ends, is_target) for row in ids]
    tokens, asking = torch.from_numpy(ids).to(device), [is_target] * len(rows)

    def plain() -> None:
        student.base_model(tokens, use_cache=False)

    def written(select: bool) -> None:
        readings = list(read_rows(student, rows, layers, ROWS, (), asking if select else None))
        stored = [
            StoredRow(str(n), found.kv.half(), ends, ends - 1, importance=found.importance) for n, found in readings
        ]
        with tempfile.TemporaryDirectory() as scratch:
            write_shard(Path(scratch) / "shard.safetensors", stored, layers)
        if select:
            kv = torch.stack([found.kv for _, found in readings]).float()
            weight = torch.stack([found.importance for _, found in readings]).float().mean(-1)
            keys = [kv[:, None, :, layer, KEY] for layer in layers]
            everywhere = torch.ones(ROWS, TOKENS, dtype=torch.bool)
            select_tokens("rkv", keys, 0.5, everywhere, importance=list(weight[:, None].unbind(-1)))

    variants = {"plain": plain, "stored": lambda: written(False), "selected": lambda: written(True)}
    with torch.no_grad():
        found = timed(variants, steps, device)
    return {
        "capture + store ÷ plain forward": found["stored"] / found["plain"],
        "capture + select + store ÷ plain forward": found["selected"] / found["plain"],
        "plain forward (s)": found["plain"],
    }


def timed(functions: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each, in alternating rounds after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            synchronise(device)
            start = time.perf_counter()
            function()
            synchronise(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def forget_peak(device: str) -> None:
    """Count memory from here on, so that what a step needs is not hidden behind what setting it up needed."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> float:
    """MiB since `forget_peak`: of the process on a CPU (Linux), of the allocator on a GPU.

    Not `ru_maxrss`: a child starts with its parent's.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main(
    size: Annotated[str, typer.Option(help=", ".join(SIZES))] = "smollm2",
    device: str = "cpu",
    steps: int = 5,
    tier: Annotated[str, typer.Option(help="raw, mapped")] = "raw",
    memory_of: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print the ratios as JSON."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if memory_of:
            step, _ = build_variant(VARIANTS[memory_of], size, device, folder, tier)
            step()  # from here on the optimizer has its state
            gc.collect()
            forget_peak(device)
            step()
            print(peak_memory(device))
            return
        variants = {name: build_variant(count, size, device, folder, tier)[0] for name, count in VARIANTS.items()}
        found = timed(variants, steps, device)
        report = {f"{name} ÷ sft": found[name] / found["sft"] for name in VARIANTS} | {"sft step (s)": found["sft"]}
        print(report, file=sys.stderr, flush=True)
        del variants
        report |= capture_ratio(size, device, steps)
        print(report, file=sys.stderr, flush=True)
    same = ["--size", size, "--device", device, "--tier", tier]
    peaks = {
        name: float(
            subprocess.run(
                [sys.executable, __file__, *same, "--memory-of", name], check=True, capture_output=True, text=True
            ).stdout.split()[-1]
        )
        for name in VARIANTS
    }
    report |= {f"peak memory, {name} ÷ sft": peaks[name] / peaks["sft"] for name in VARIANTS if name != "sft"}
    print(json.dumps({name: round(value, 3) for name, value in report.items()}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    typer.run(main)
