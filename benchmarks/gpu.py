"""What the package does on a GPU, on random weights of Qwen2.5's shapes: speed, memory, and whether the results are right.

python benchmarks/gpu.py --out gpu.json [--minutes 6] [--toy] [--part NAME ...]     (on a bare machine: benchmarks/gpu.sh)

The text is made up and read by a small byte-level BPE, so that of a vocabulary of 151,936 only some hundred ids occur: time and memory do
not depend on which. A part that fails, or for which there is no time, says why in the JSON, and the others go on. MFU is FLOPs by the
formula of `mtkv.ops.cost_model` ÷ seconds ÷ the maker's FLOP/s for 16 bit. --toy: the same parts at toy size, on a CPU.
"""

import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from safetensors.torch import load_file
from steps import forget_peak, peak_memory, synchronise, timed
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from mtkv.checkpointing.preemption import Preemption, SavedExit
from mtkv.checkpointing.store import Checkpoint
from mtkv.config.arms import LoraConfig, TrainingConfig
from mtkv.config.evaluation import EvaluationConfig
from mtkv.config.kv import AlignConfig, KVConfig
from mtkv.config.models import ModelConfig
from mtkv.distill.teacher_kv import TeacherFiles
from mtkv.kv.extract import StorePlan, extract_shard, read_rows
from mtkv.kv.shards import KEY, VALUE
from mtkv.kv.store import KVStore, write_index
from mtkv.models.load import load_model, load_tokenizer
from mtkv.models.tokenization import encode_rows
from mtkv.ops.cost_model.estimate import DEVICES
from mtkv.ops.cost_model.work import Amounts, work_of
from mtkv.provenance.files import write_parquet
from mtkv.stages.fit_map import MapFiles, calibrate_map
from mtkv.stages.predict import ModelSource, predict
from mtkv.stages.train import TrainingRun, train_arm
from mtkv.stages.train_worker import train
from mtkv.training.checkpointing import CheckpointPolicy
from mtkv.training.resume import Pace

FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SHAPES = {  # vocabulary, then those
    "teacher": (152064, 3584, 18944, 28, 28, 4),  # Qwen2.5-7B
    "student": (151936, 1536, 8960, 28, 12, 2),  # Qwen2.5-1.5B
    "small": (151936, 896, 4864, 24, 14, 2),  # Qwen2.5-0.5B: its checkpoint is 6 GB, the student's 18
}
TOY_SHAPES = dict.fromkeys(SHAPES, (1024, 32, 64, 2, 4, 2)) | {"teacher": (1024, 48, 96, 2, 4, 2)}
# What they are saved in; the small one's weights are compared to the bit.
DTYPES = {"teacher": "bfloat16", "student": "bfloat16", "small": "float32"}
Scale = namedtuple("Scale", "tokens batch steps warm_up rows questions new_tokens")  # tokens: of each row
SCALE = Scale(512, 8, 25, 5, {"train": 64, "val": 4, "calibration": 12}, 64, 64)
TOY_SCALE = Scale(32, 2, 4, 1, {"train": 4, "val": 2, "calibration": 4}, 2, 4)
WORDS = [" has", " apples", " and", " buys", " more", " how", " many", " total", *(f" {n}" for n in range(100))]
LEAST_SECONDS = 30  # with less left no part is begun
DATASETS = {"pocket_gsm8k": [], "pocket_truthfulqa": ["apples", "more", "many", "total"]}  # generated, and chosen


def text(rng: np.random.Generator, words: int) -> list[str]:
    """Words that are a token each."""
    return ["Tom", *rng.choice(WORDS, words - 1)]


@contextmanager
def at_each_step(act: Callable[[int], None]) -> Iterator[None]:
    """Inside, a training calls `act(steps done)` before each step."""
    Pace.on_step_begin = lambda self, args, state, control, **_: act(state.global_step)
    try:
        yield
    finally:
        del Pace.on_step_begin


class GPUBenchmark:
    """The parts, in `folder`; what one part makes, later ones read."""

    def __init__(self, folder: Path, toy: bool, asked: bool) -> None:
        self.folder, self.asked, self.cards = folder, asked, torch.cuda.device_count()
        self.visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1")
        if self.cards > 1:  # else the Trainer would split each batch over all of them
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible.split(",")[0]
        self.shapes, self.scale = (TOY_SHAPES, TOY_SCALE) if toy else (SHAPES, SCALE)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        self.configs = {
            name: ModelConfig(source="path", name=str(folder / name), dtype=dtype) for name, dtype in DTYPES.items()
        }
        self.rows = {split: folder / f"{split}.parquet" for split in self.scale.rows}
        self.store, self.map = folder / "store", folder / "map.safetensors"

    def models(self) -> dict[str, Any]:
        """Weights, tokenizer and rows."""
        rng, third = np.random.default_rng(0), self.scale.tokens // 3
        for split, count in self.scale.rows.items():
            texts = [text(rng, self.scale.tokens - 1) for _ in range(count)]  # and the token that ends a row
            frame = pd.DataFrame({"id": [f"{split}-{n}" for n in range(count)], "dataset": "x"})
            frame["prompt"] = ["".join(words[:third]) for words in texts]
            frame["target"] = ["".join(words[third:]) for words in texts]
            frame["prompt_end"] = frame["reasoning_end"] = frame["prompt"].str.len()
            write_parquet(self.rows[split], frame)
        bpe, special, parameters = ByteLevelBPETokenizer(), {"pad_token": "<pad>", "eos_token": "<eos>"}, {}
        words = ["".join(["Tom", *WORDS])] * 4
        bpe.train_from_iterator(words, 1000, show_progress=False, special_tokens=[*special.values()])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **special)
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        for name, (vocabulary, *shape) in self.shapes.items():
            more = ids | {"tie_word_embeddings": name != "teacher", "dtype": DTYPES[name], "vocab_size": vocabulary}
            config = Qwen2Config(**dict(zip(FIELDS, shape, strict=True)), **more)
            torch.manual_seed(0)
            with torch.device(self.device):  # a CPU takes minutes to draw 7 billion numbers
                model = AutoModelForCausalLM.from_config(config)
            model.save_pretrained(self.folder / name)
            tokenizer.save_pretrained(self.folder / name)
            parameters[f"parameters, {name}"] = model.num_parameters()
        return parameters

    def extraction(self) -> dict[str, Any]:
        """The stage; then capture of K and V against the plain forward, and the store against what the projections put out."""
        scale, teacher, shard = self.scale, self.configs["teacher"], self.store / "shard-0000.safetensors"
        layers, paths = range(self.shapes["teacher"][3]), list(self.rows.values())
        plan = StorePlan(layers, 1, "float16", scale.batch)
        facts = extract_shard(teacher, paths, 0, plan, shard)
        write_index([shard], self.store / "index.parquet")
        model, rows = load_model(teacher), pd.read_parquet(self.rows["train"]).head(scale.batch)
        encoded = encode_rows(load_tokenizer(teacher), list(rows["prompt"]), list(rows["target"]))
        ids = torch.from_numpy(np.stack([row.input_ids for row in encoded])).to(self.device)

        plain = partial(model.base_model, ids, attention_mask=torch.ones_like(ids), use_cache=False)
        read = partial(read_rows, model, encoded, layers, scale.batch)
        with torch.no_grad():
            expected = projections(model, plain).half().cpu()
            forget_peak(self.device)
            found = timed({"plain": plain, "captured": lambda: list(read())}, 3, self.device)
        store, every = KVStore(self.store), np.arange(scale.tokens)
        kv = torch.stack([store.read(row, every) for row in rows["id"]])
        off = (kv.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)  # [batch, time, layers, 2]
        shape = {"teacher": {"config": teacher.model_dump()}, "layers": ["ratio"], "importance": False}
        return {
            "largest difference of K ÷ its length": float(off[..., KEY].max()),  # not 0: RoPE was taken back in bf16
            "largest difference of V ÷ its length": float(off[..., VALUE].max()),
            "plain forward, tokens/s": ids.numel() / found["plain"],
            "capture ÷ plain forward": found["captured"] / found["plain"],
            "MFU of the plain forward": self.mfu(found["plain"], "teacher_kv", **shape, dtype="float16", shards=1),
            "peak MiB": peak_memory(self.device),
            "bytes per token": facts["bytes"] / facts["tokens"],
        }

    def fitted(self) -> dict[str, Any]:
        """The teacher's map."""
        models, probe = (self.configs["student"], "teacher", self.configs["teacher"]), self.folder / "map.probe"
        files = MapFiles(self.map, probe, self.folder / "map.example")
        facts = calibrate_map(*models, AlignConfig(), self.store, self.folder, files)
        return {name: facts[name] for name in ("coverage", "calibration_tokens")}

    def arm(self, name: str, student: str = "student", teachers: int = 0, **changes: Any) -> TrainingRun:
        """A training of the student; its teachers are one and the same store under several names."""
        output, scale, names = self.folder / "arms" / name, self.scale, [f"t{number}" for number in range(teachers)]
        length = {"steps": scale.steps, "batch_size": scale.batch, "max_length": scale.tokens}
        rare = {"logging_steps": scale.steps, "eval_steps": 10 * scale.steps}
        return TrainingRun(
            student=self.configs[student],
            training=TrainingConfig(**length | rare | {"gradient_accumulation": 1, "dtype": "bfloat16"} | changes),
            kv=KVConfig(teachers=names) if names else None,
            seed=42,
            teachers=[TeacherFiles(self.configs["teacher"], self.map, self.store) for _ in names],
            **{"train_rows": self.rows["train"], "validation_rows": self.rows["val"]},
            **{f"{name}_path": output / f"{name}.parquet" for name in ("log", "routing")},
            model_folder=output / "model",
        )

    def steps(self, **how: Any) -> dict[str, Any]:
        """Median of a step, with reading its rows and KV; `how` as `arm` takes it."""
        begun, peaks, scale, run = [], [], self.scale, self.arm("steps", **how)

        def note(_done: int) -> None:
            synchronise(self.device)
            peaks.append(peak_memory(self.device))
            forget_peak(self.device)
            begun.append(time.perf_counter())

        with at_each_step(note):
            train_arm(run)
        seconds = float(np.median(np.diff(begun)[scale.warm_up :]))
        arm = {"training": run.training.model_dump() | {"steps": 1}, "kv": run.kv and run.kv.model_dump()}
        arm |= {"teachers": [], "tier": "raw", "logit_teachers": []}
        return {
            "seconds per step": seconds,
            "tokens/s": scale.batch * scale.tokens / seconds,
            "MFU": self.mfu(seconds, "train", arm=arm),
            "peak MiB": max(peaks[scale.warm_up + 1 :]),
        }

    def resume(self) -> dict[str, Any]:
        """A training that is told to save and stop (SIGUSR1) and goes on in a new start, against an undisturbed one."""

        def ask(done: int) -> None:
            if done == self.scale.warm_up:
                os.kill(os.getpid(), signal.SIGUSR1)

        torch.use_deterministic_algorithms(True)  # else attention adds up its gradients in whatever order
        try:
            train_arm(self.arm("whole", "small"))
            for act in (ask, lambda _: None):
                checkpoint = Checkpoint(self.folder / "checkpoints", {"part": "resume"}, {})
                with suppress(SavedExit), at_each_step(act), checkpoint, Preemption() as preemption:
                    facts = train_arm(self.arm("cut", "small"), CheckpointPolicy(checkpoint, preemption))
        finally:
            torch.use_deterministic_algorithms(False)
        folders = [self.folder / "small", *(self.folder / f"arms/{arm}/model" for arm in ("whole", "cut"))]
        start, whole, cut = (load_file(folder / "model.safetensors") for folder in folders)
        return {
            "resumed at": facts["resumed_at"],
            "weights equal to the bit": all(torch.equal(whole[name], cut[name]) for name in whole),
            "largest difference": max(float((whole[name] - cut[name]).abs().max()) for name in whole),
            "largest change by training": max(float((whole[name] - start[name]).abs().max()) for name in whole),
        }

    def prediction(self) -> dict[str, Any]:
        """The untrained student answers; few of its answers end before the limit."""
        rng, data, count = np.random.default_rng(1), self.folder / "data", self.scale.questions
        for name, choices in DATASETS.items():
            frame = pd.DataFrame({"id": [f"{name}-{n}" for n in range(count)], "cluster": "x", "answer": "apples"})
            frame["question"] = ["".join(text(rng, self.scale.tokens // 4)) for _ in range(count)]
            frame["choices"], frame["gold"] = [choices] * count, 0 if choices else -1
            write_parquet(data / "test" / f"{name}.parquet", frame.assign(question_hash=frame["id"]))
        settings = EvaluationConfig(batch_size=count, max_new_tokens=self.scale.new_tokens)
        outputs = {name: self.folder / f"{name}.parquet" for name in DATASETS}
        facts = predict(ModelSource(self.folder / "student"), data, settings, outputs)
        if facts["failed"]:
            raise RuntimeError(str(facts["failed"]))
        of = facts["datasets"]
        return {f"{name}, questions/s": of[name]["items"] / of[name]["seconds"] for name in DATASETS} | {
            "generated tokens/s": of["pocket_gsm8k"]["generated_tokens"] / of["pocket_gsm8k"]["seconds"]
        }

    def two_processes(self) -> dict[str, Any]:
        """SFT over two processes: NCCL on two cards; on a CPU gloo, where the part is asked for by name."""
        if self.cards < 2 and not self.asked:
            raise RuntimeError(f"needs two cards, here are {self.cards}")
        if self.cards > 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible  # to the processes; this one has its card already
        log, asked = self.folder / "two.log", {"strategy": "ddp", "workers": 2}
        params = type("Params", (dict,), {"study": "gpu"})(code="")  # as Snakemake's
        log.touch()
        job = SimpleNamespace(params=params, wildcards={}, input=[], output=[], log=[log], resources=asked)
        with chdir(self.folder):  # the processes keep their checkpoints where they run
            facts = train(job, self.arm("two"))
        return {"seconds per step, with the first": facts["train_seconds"] / facts["steps"]}

    def mfu(self, seconds: float, rule: str, **params: Any) -> float | None:
        """Of a batch through the stage of `rule`; None on a card whose FLOP/s are not known."""
        student = {"config": self.configs["student"].model_dump()}
        amounts = Amounts(self.scale.batch, 0, 0, {}, {"student": self.scale.tokens}, frozenset(), student)
        flops = work_of(rule, params | {"student": student}, amounts, ()).flops
        name = next((name for name in DEVICES if name in self.card.lower()), None)
        return flops / seconds / DEVICES[name].flops_16 if name else None


def projections(model: Any, forward: Callable[[], object]) -> torch.Tensor:
    """What the key and value projections give in a forward, by hooks of our own: [batch, time, layers, 2, width]."""
    found: list[torch.Tensor] = []
    modules = [getattr(layer.self_attn, name) for layer in model.model.layers for name in ("k_proj", "v_proj")]
    hooks = [module.register_forward_hook(lambda _module, _inputs, output: found.append(output)) for module in modules]
    forward()
    for hook in hooks:
        hook.remove()
    return torch.stack(found, 2).unflatten(2, (-1, 2))


PARTS: dict[str, Callable[[GPUBenchmark], dict[str, Any]]] = {
    "models": GPUBenchmark.models,
    "extraction": GPUBenchmark.extraction,
    "map": GPUBenchmark.fitted,
    "SFT": lambda at: at.steps(),
    "KV, one teacher": lambda at: at.steps(teachers=1),
    "KV, two teachers": lambda at: at.steps(teachers=2),
    "resume": GPUBenchmark.resume,
    "prediction": GPUBenchmark.prediction,
    "QLoRA": lambda at: at.steps(lora=LoraConfig(quantize="4bit")),
    "two processes": GPUBenchmark.two_processes,
}


def table(report: dict[str, Any]) -> str:
    """The report as markdown."""
    lines = [f"{report['card']}, torch {report['torch']}\n", "| part | found |", "|---|---|"]
    for name, found in report["parts"].items():
        shown = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items()]
        lines.append(f"| {name} | {'; '.join(shown)} |")
    return "\n".join(lines) + "\n"


def main(
    out: Annotated[Path, typer.Option(help="JSON; the table goes beside it, as .md.")],
    minutes: float = 6.0,
    toy: bool = False,
    part: Annotated[list[str], typer.Option(help="Only these, and models; may be repeated.")] = [],  # noqa: B006
) -> None:
    """Run the parts one after the other; JSON and table are written anew after each."""
    deadline = time.monotonic() + 60 * minutes
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it products are not deterministic
    with tempfile.TemporaryDirectory() as scratch:
        benchmark = GPUBenchmark(Path(scratch), toy, bool(part))
        report: dict[str, Any] = {"card": benchmark.card, "torch": torch.__version__, "toy": toy, "parts": {}}
        for name in [name for name in PARTS if name in ("models", *part) or not part]:
            left, started = deadline - time.monotonic(), time.monotonic()
            try:
                if left < LEAST_SECONDS:
                    raise TimeoutError(f"{max(0, left):.0f} s are left")
                found = PARTS[name](benchmark)
            except Exception as error:
                traceback.print_exc()
                found = {"missing": f"{type(error).__name__}: {error}"}
            report["parts"][name] = found | {"seconds of this part": time.monotonic() - started}
            print(name, json.dumps(report["parts"][name], ensure_ascii=False), file=sys.stderr, flush=True)
            out.write_text(json.dumps(report, indent=2, ensure_ascii=False))
            out.with_suffix(".md").write_text(table(report))
            shutil.rmtree(Path(scratch) / "arms", ignore_errors=True)
            gc.collect()
            torch.cuda.empty_cache()
    print(table(report))


if __name__ == "__main__":
    typer.run(main)
