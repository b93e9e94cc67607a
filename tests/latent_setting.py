"""A latent student, rows with chains and two teachers of other families with stores and maps, for tests of the view `latent`."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from classic_kv import classic
from tokenizers_for_tests import byte_level_bpe, unigram

from mtkv.align.closed_form_maps import fit_map
from mtkv.config.arms import TrainingConfig
from mtkv.config.kv import KVConfig
from mtkv.config.latent import LatentConfig
from mtkv.distill.kv_objective import KVObjective
from mtkv.kv.extract import answer_tokens, read_rows
from mtkv.kv.shards import StoredRow, write_shard
from mtkv.kv.store import KVStore, write_index
from mtkv.latent.model.student import LatentStudent
from mtkv.latent.training.dataset import LatentArm, LatentRows
from mtkv.latent.training.objective import LatentDistiller
from mtkv.latent.training.self_teacher import own_map
from mtkv.latent.training.teacher_kv import ChainTeacherKV, SelfTeacherKV
from mtkv.models.tokenization import encode_rows

CHAINS = [
    (" 3+4=7. 7-2=5. 5*2=10.", "\nAnswer: 10"),
    (" 12+30=42.", "\nAnswer: 42"),
    (" 8/2=4. 4+1=5.", "\nAnswer: 5"),
    ("5+3=8。8-1=7。", "\n答案：7"),
    (" <<6*7=42>> <<42+1=43>>", "\nAnswer: 43"),
]
PROMPTS = [f"Question: Tom has {i} apples and buys {i + 3} more.\nReason:" for i in range(3)]
PROMPTS += ["问题：小明有 5 个苹果\n推理：", "Question: How many?\nReason:"]
ROWS = pd.DataFrame(
    {
        "id": [f"r{i}" for i in range(5)],
        "dataset": ["a", "b", "a", "c", "b"],
        "style": ["cot"] * 5,
        "prompt": PROMPTS,
        "target": [chain + answer for chain, answer in CHAINS],
        "answer": ["10", "42", "5", "7", "43"],
        "prompt_end": [len(prompt.encode()) for prompt in PROMPTS],
        "reasoning_end": [len((prompt + chain).encode()) for prompt, (chain, _) in zip(PROMPTS, CHAINS, strict=True)],
    }
)
TEACHERS = {"llama": (byte_level_bpe, 2, {"max_position_embeddings": 256}), "gpt2": (unigram, 4, {"n_positions": 256})}
HEADS = {name: heads for name, (_, heads, _) in TEACHERS.items()}
UNIFORM = {"select": {"method": "uniform"}}


class Setting:
    """`student(...)` makes a new latent student of the same weights; stores and maps are made once."""

    def __init__(self, folder: Path, build_model: Any) -> None:
        self.build_model, self.tokenizer = build_model, byte_level_bpe(300)
        self.stores, self.maps = {}, {}
        generator = torch.Generator().manual_seed(2)
        for name, (build_tokenizer, _, limit) in TEACHERS.items():
            theirs = build_tokenizer()
            teacher = build_model(name, seed=1, vocab_size=len(theirs), **limit)
            encoded = encode_rows(theirs, list(ROWS["prompt"]), list(ROWS["target"]))
            asking = [answer_tokens(e, end) for e, end in zip(encoded, ROWS["reasoning_end"], strict=True)]
            found = dict(read_rows(teacher, encoded, [0, 1, 2], 2, asking=asking))
            rows = [
                StoredRow(row, found[i].kv, e.byte_end, e.byte_start, importance=found[i].importance)
                for i, (row, e) in enumerate(zip(ROWS["id"], encoded, strict=True))
            ]
            shard = folder / name / "shard-0000.safetensors"
            write_shard(shard, rows, [0, 1, 2])
            write_index([shard], folder / name / "index.parquet")
            self.stores[name] = KVStore(folder / name)
            x = torch.randn(200, 3, 2, self.stores[name].width, generator=generator)
            y = torch.randn(200, 3, 2, 16, generator=generator)
            self.maps[name] = fit_map(x, y, [0, 1, 2], "ridge", 1e-3)

    def student(self, config: LatentConfig) -> LatentStudent:
        model = self.build_model("llama", vocab_size=len(self.tokenizer), max_position_embeddings=256)
        torch.manual_seed(5)
        return LatentStudent.create(model, config.tokens, config.iterations, config.projection, config.markers).eval()

    def sources(self, kv: KVConfig | None) -> list[ChainTeacherKV | SelfTeacherKV]:
        if kv is None:
            return []
        if kv.own:
            return [SelfTeacherKV()]
        return [
            ChainTeacherKV(self.stores[t], torch.eye(3), kv.align.time, kv.select, kv_heads=HEADS[t])
            for t in kv.teachers
        ]

    def make(
        self, kv: dict[str, Any] | None = None, rows: Any = ROWS, **latent: Any
    ) -> tuple[LatentDistiller, LatentRows]:
        """The module and the rows of an arm; four latents refined twice unless said otherwise."""
        config = LatentConfig.model_validate({"tokens": 4, "iterations": 2} | latent)
        parsed = KVConfig.model_validate(classic({"teachers": ["llama"]} | UNIFORM | kv)) if kv is not None else None
        student = self.student(config)
        found = LatentRows(
            self.tokenizer, rows, student, LatentArm(TrainingConfig(steps=1), config, parsed, 0), self.sources(parsed)
        )
        supervision = None
        torch.manual_seed(3)
        if parsed and parsed.own:
            supervision = KVObjective(parsed, [own_map(3, 16)], (2, [2]))
        elif parsed:
            maps = [self.maps[teacher] for teacher in parsed.teachers]
            supervision = KVObjective(parsed, maps, (2, [HEADS[teacher] for teacher in parsed.teachers]))
        return LatentDistiller(student, 1.0, config, supervision), found
