"""Rows, tiny models in folders, stores, maps and arms: the stages of a study without Snakemake, for tests."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import transformers
from classic_kv import classic
from conftest import ARCHITECTURES, ENCODERS
from safetensors.torch import load_file
from snakemake.iocontainers import Namedlist
from tokenizers_for_tests import byte_level_bpe, unigram, wordpiece

from mtkv.config.arms import TrainingConfig
from mtkv.config.kv import AlignConfig, KVConfig
from mtkv.config.models import ModelConfig
from mtkv.distill.teacher_kv import TeacherFiles
from mtkv.kv.extract import StorePlan, extract_shard
from mtkv.kv.store import write_index
from mtkv.provenance.files import write_parquet
from mtkv.stages.fit_map import MapFiles, calibrate_map
from mtkv.stages.project_targets import Storing, write_targets
from mtkv.stages.train import TrainingRun, train_arm

STEPS = 6
TRAINING = TrainingConfig.model_validate(
    {
        "steps": STEPS,
        "batch_size": 4,
        "gradient_accumulation": 1,
        "learning_rate": 1e-3,
        "logging_steps": 2,
        "eval_steps": 3,
    }
)
# name: architecture, tokenizer, layers
MODELS = {
    "student": ("llama", byte_level_bpe(300), 3),
    "qwen3": ("qwen3", byte_level_bpe(340), 3),
    "gpt2": ("gpt2", unigram(), 8),  # so many that all layer strategies differ
    "bert": ("bert", wordpiece(), 3),
    "t5": ("t5", unigram(), 3),
    "twin": ("llama", byte_level_bpe(300), 2),  # the student's tokenizer and widths
}
COUNTS = {"train": 24, "val": 8, "calibration": 40}


def rows(split: str, count: int) -> pd.DataFrame:
    rng = np.random.default_rng(len(split))
    numbers = rng.integers(1, 90, (count, 2))
    prompts = [f"Question: Tom has {a} apples and buys {b} more. How many?\nReason:" for a, b in numbers]
    reasons = [f" {a}+{b}={a + b}." for a, b in numbers]
    return pd.DataFrame(
        {
            "id": [f"{split}-{i}" for i in range(count)],
            "dataset": ["sums" if i % 2 else "apples" for i in range(count)],
            "prompt": prompts,
            "target": [f"{reason}\nAnswer: {a + b}" for reason, (a, b) in zip(reasons, numbers, strict=True)],
            "prompt_end": [len(prompt) for prompt in prompts],
            "reasoning_end": [len(prompt + reason) for prompt, reason in zip(prompts, reasons, strict=True)],
        }
    )


class TinyStudy:
    """Everything below `folder`; maps and stores are made when an arm first needs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = {split: folder / f"{split}.parquet" for split in COUNTS}
        for split, path in self.paths.items():
            write_parquet(path, rows(split, COUNTS[split]))
        self.models = {name: self._model(name) for name in MODELS}
        self.facts: dict[str, dict] = {}

    def _model(self, name: str) -> ModelConfig:
        architecture, tokenizer, layers = MODELS[name]
        class_name, arguments = (ARCHITECTURES | ENCODERS)[architecture]
        size = {"n_positions": 128, "n_layer": layers} if architecture == "gpt2" else {"num_hidden_layers": layers}
        size |= {} if architecture in ("gpt2", "t5") else {"max_position_embeddings": 128}
        torch.manual_seed(len(name))
        config = getattr(transformers, class_name)(**(arguments | size | {"vocab_size": len(tokenizer)}))
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        auto = transformers.AutoModel if architecture in ENCODERS else transformers.AutoModelForCausalLM
        auto.from_config(config).save_pretrained(self.folder / name)
        tokenizer.save_pretrained(self.folder / name)
        return ModelConfig(source="path", name=str(self.folder / name))

    def store(self, teacher: str, dtype: str = "float16") -> Path:
        """The teacher's store of all layers, in two shards, with the attention that selectors need and what routers do."""
        folder = self.folder / "stores" / f"{teacher}-{dtype}"
        if not (folder / "index.parquet").exists():
            shards = [folder / f"shard-{i:04d}.safetensors" for i in range(2)]
            layers = range(MODELS[teacher][2])
            for i, shard in enumerate(shards):
                paths = list(self.paths.values())
                plan = StorePlan(layers, 2, dtype, 8, True, ("entropy", "likelihood"))
                extract_shard(self.models[teacher], paths, i, plan, shard)
            write_index(shards, folder / "index.parquet")
        return folder

    def map(self, teacher: str, align: AlignConfig, stored: bool = True) -> Path:
        path = self.folder / "maps" / f"{teacher}-{align.slug}{'' if stored else '-online'}.safetensors"
        if not path.exists():
            self.facts[path.stem] = calibrate_map(
                self.models["student"],
                teacher,
                self.models[teacher],
                align,
                self.store(teacher) if stored else None,
                self.paths["val"].parent,
                MapFiles(path, path.with_suffix(".probe"), path.with_suffix(".example")),
            )
        return path

    def targets(self, teacher: str, align: AlignConfig, tier: str = "mapped", width: int | None = None) -> Path:
        folder = self.folder / "targets" / f"{teacher}-{align.slug}-{tier}-{width}"
        if not folder.exists():
            paths = [self.paths["train"], self.paths["val"]]
            write_targets(
                self.models["student"],
                self.store(teacher),
                self.map(teacher, align),
                align.time,
                paths,
                Storing(tier, "float32", width),
                folder,
            )
        return folder

    def teachers(self, kv: KVConfig, tier: str = "raw") -> list[TeacherFiles]:
        places = {
            "raw": lambda teacher: self.store(teacher),
            "mapped": lambda teacher: self.targets(teacher, kv.align),
            "components": lambda teacher: self.targets(teacher, kv.align, "components", 1000),  # cut to all there are
            "online": lambda teacher: None,
        }
        return [
            TeacherFiles(self.models[name], self.map(name, kv.align, tier != "online"), places[tier](name), tier)
            for name in ([] if kv.own else kv.teachers)
        ]

    def train(self, name: str, kv: KVConfig | None = None, tier: str = "raw", policy=None, layout=None, **more):
        """Train one arm; returns its folder and the facts for the card. `more` as `run` takes it."""
        output = self.folder / "arms" / name
        return output, train_arm(self.run(output, kv, tier, **more), policy, layout)

    def run(self, output: Path, kv: KVConfig | None = None, tier: str = "raw", **more) -> TrainingRun:
        """Of an arm whose results go to `output`; `more` are other fields than those of this study."""
        given = {
            "student": self.models["student"],
            "training": TRAINING,
            "seed": 42,
            "train_rows": self.paths["train"],
            "validation_rows": self.paths["val"],
            "teachers": self.teachers(kv, tier) if kv else [],
            "model_folder": output / "model",
            "log_path": output / "training.parquet",
            "routing_path": output / "routing.parquet",
        }
        return TrainingRun(**given | {"kv": kv} | more)


def job(**parts) -> SimpleNamespace:
    """A stand-in for the `snakemake` object of a script: of each part a mapping or a list, as Snakemake's own class holds it."""
    names = ("params", "wildcards", "input", "output", "log", "resources")
    given = {name: parts.get(name, {}) for name in names}
    return SimpleNamespace(
        **{name: Namedlist(**({"fromdict": x} if isinstance(x, dict) else {"toclone": x})) for name, x in given.items()}
    )


def kv(**changes) -> KVConfig:
    return KVConfig.model_validate(classic({"teachers": ["qwen3", "gpt2"]} | changes))


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal to the bit."""
    return all(torch.equal(one[name], other[name]) for name in one)
